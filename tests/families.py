"""What is asked of an automatic layer: a grid, and maps of the class that move with the evidence.

Weights are random and no head is zero. The layer's output is compared for images that differ in one cell of
the grid alone: where it changes most has to be that cell, or tokens stand in another order than they are
read in.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import timm
import torch
import torchvision
from torch import Tensor, nn

import camkit
from camkit.core import hooks
from camkit.core.layer_lookup import automatic_layer
from camkit.errors import CamkitWarning

METHODS = ("gradcam", "hirescam")
CELLS = 4  # how many places are tried for each model
AGREEMENT = 0.5  # between nearness and change, from -1 to 1; tokens in any order have 0.0, +-0.1


@dataclass(frozen=True)
class Found:
    """layer, grid: what `auto` is. faults: what is wrong with it, in words; none is right."""

    layer: str
    grid: tuple[int, ...]
    faults: tuple[str, ...]


def build(name: str, size: tuple[int, int], classes: int = 10) -> nn.Module:
    """`torchvision:NAME` or `timm:NAME` with random weights that are not zero, in eval mode.

    size: of the images, for models that are made for one.
    """
    library, _, name = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        options: dict[str, object] = {"num_classes": classes}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # by scipy, for minutes
        if name.startswith("vit_"):
            options["image_size"] = size[0]
        module = torchvision.models.get_model(name, weights=None, **options)
    else:
        try:
            module = timm.create_model(name, num_classes=classes, img_size=size)
        except TypeError:
            module = timm.create_model(name, num_classes=classes)
    wake(module)
    return module.eval()


def wake(module: nn.Module) -> None:
    """Random weights for whatever starts at zero, such as a head."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def examine(module: nn.Module, size: tuple[int, int], *, places: bool = True) -> Found:
    """The automatic layer of `module`, in float64 afterwards, for images of this size.

    places: whether to look where the output changes. Raises what `maps` raises.
    """
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    layer = automatic_layer(module, image).name
    with torch.no_grad():
        returned = module(image)
    scores = returned[0] if isinstance(returned, tuple | list) else returned
    best = scores[0].topk(2).indices  # a ReLU behind the others may leave them nothing
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", CamkitWarning)
        found = [camkit.maps_by(module, image, int(c), layer=[layer], method=METHODS) for c in best]
    faults = [str(warning.message) for warning in told if issubclass(warning.category, CamkitWarning)]
    for method in METHODS:
        maps = torch.cat([of_class[method, layer] for of_class in found])  # type: ignore[call-overload]
        faults += [f"{method} {fault}" for fault in _of_maps(maps)]
    grid = tuple(maps.shape[1:])
    if places and not faults:
        faults += _of_places(module, layer, image, grid)
    return Found(layer, grid, tuple(faults))


def _of_maps(maps: Tensor) -> list[str]:
    """What is wrong with maps `[T, h, w]`, one for each class."""
    if not maps.isfinite().all():
        return ["is not finite"]
    if not maps.flatten(1).any(1).all():
        return ["is zero"]
    above = maps.flatten(1) - maps.flatten(1).mean(1, keepdim=True)
    alike = torch.cosine_similarity(above[0], above[1], dim=0).abs()
    return ["does not depend on the class"] if alike > 1 - 1e-4 else []


def _of_places(module: nn.Module, layer: str, image: Tensor, grid: tuple[int, ...]) -> list[str]:
    """Whether the output changes most where the image does, or at least more the nearer."""
    h, w = grid
    generator = torch.Generator().manual_seed(1)
    cells = torch.randperm(h * w, generator=generator)[: 2 * CELLS].tolist()
    places = [divmod(cell, w) for cell in cells]
    missed = []
    for (i, j), change in zip(
        places, _changes(module, layer, image, grid, places[:CELLS], 3.0), strict=False
    ):
        a, b = divmod(int(change.argmax()), w)
        if max(abs(a - i), abs(b - j)) > 1:
            missed.append(f"changes most at {(a, b)} of {grid} for other pixels at {(i, j)}")
    if not missed:
        return []
    # Changes so small that no network, random as it is, makes something else of everything.
    slight = _changes(module.double(), layer, image.double(), grid, places, 1e-3).flatten(1)
    everywhere = torch.cartesian_prod(torch.arange(h) / h, torch.arange(w) / w).double()
    nearness = -torch.cdist(everywhere[cells], everywhere)
    logarithms = slight.clamp_min(1e-9 * slight.max()).log()
    pair = torch.stack([_centred(logarithms).flatten(), _centred(nearness).flatten()])
    return missed if torch.corrcoef(pair)[0, 1] < AGREEMENT else []


def _changes(
    module: nn.Module,
    layer: str,
    image: Tensor,
    grid: tuple[int, ...],
    places: list[tuple[int, int]],
    strength: float,
) -> Tensor:
    """How much the output changes at every place, `[n, h, w]`, if the image does in one of its n cells."""
    (h, w), (height, width) = grid, image.shape[2:]
    generator = torch.Generator().manual_seed(2)
    images = image.repeat(1 + len(places), 1, 1, 1)
    for changed, (i, j) in zip(images[1:], places, strict=True):
        cell = changed[:, i * height // h : (i + 1) * height // h, j * width // w : (j + 1) * width // w]
        cell += strength * torch.randn(cell.shape, generator=generator)
    features = hooks.forward(module, images, [layer])[1][layer].features
    return (features[1:] - features[:1]).norm(dim=1)


def _centred(matrix: Tensor) -> Tensor:
    return matrix - matrix.mean(0) - matrix.mean(1, keepdim=True) + matrix.mean()


# --- what `auto` is -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """size: of the images. blurred: random weights mix the places, so that these are not looked at."""

    name: str
    size: tuple[int, int]
    layer: str
    grid: tuple[int, int]
    blurred: bool = False


def _row(line: str) -> Family:
    name, size, layer, grid, *remark = line.split()
    height, width = map(int, size.split("x"))
    h, w = map(int, grid.split("x"))
    return Family(name, (height, width), layer, (h, w), remark == ["blurred"])


# Name, size of the images, layer, grid.
_TABLE = """
torchvision:alexnet 128x192 features 3x5
torchvision:convnext_base 128x192 features 4x6
torchvision:convnext_large 128x192 features 4x6
torchvision:convnext_small 128x192 features 4x6
torchvision:convnext_tiny 128x192 features 4x6
torchvision:densenet121 128x192 features 4x6
torchvision:densenet161 128x192 features 4x6
torchvision:densenet169 128x192 features 4x6
torchvision:densenet201 128x192 features 4x6
torchvision:efficientnet_b0 128x192 features 4x6
torchvision:efficientnet_b1 128x192 features 4x6
torchvision:efficientnet_b2 128x192 features 4x6
torchvision:efficientnet_b3 128x192 features 4x6
torchvision:efficientnet_b4 128x192 features 4x6
torchvision:efficientnet_b5 128x192 features 4x6
torchvision:efficientnet_b6 128x192 features 4x6
torchvision:efficientnet_b7 128x192 features 4x6
torchvision:efficientnet_v2_l 128x192 features 4x6
torchvision:efficientnet_v2_m 128x192 features 4x6
torchvision:efficientnet_v2_s 128x192 features 4x6
torchvision:googlenet 128x192 inception5b 4x6
torchvision:inception_v3 128x192 Mixed_7c 2x4
torchvision:maxvit_t 224x224 blocks.3 7x7
torchvision:mnasnet0_5 128x192 layers 4x6
torchvision:mnasnet0_75 128x192 layers 4x6
torchvision:mnasnet1_0 128x192 layers 4x6
torchvision:mnasnet1_3 128x192 layers 4x6
torchvision:mobilenet_v2 128x192 features 4x6
torchvision:mobilenet_v3_large 128x192 features 4x6
torchvision:mobilenet_v3_small 128x192 features 4x6
torchvision:regnet_x_16gf 128x192 trunk_output 4x6
torchvision:regnet_x_1_6gf 128x192 trunk_output 4x6
torchvision:regnet_x_32gf 128x192 trunk_output 4x6
torchvision:regnet_x_3_2gf 128x192 trunk_output 4x6
torchvision:regnet_x_400mf 128x192 trunk_output 4x6
torchvision:regnet_x_800mf 128x192 trunk_output 4x6
torchvision:regnet_x_8gf 128x192 trunk_output 4x6
torchvision:regnet_y_128gf 128x192 trunk_output 4x6
torchvision:regnet_y_16gf 128x192 trunk_output 4x6
torchvision:regnet_y_1_6gf 128x192 trunk_output 4x6
torchvision:regnet_y_32gf 128x192 trunk_output 4x6
torchvision:regnet_y_3_2gf 128x192 trunk_output 4x6
torchvision:regnet_y_400mf 128x192 trunk_output 4x6
torchvision:regnet_y_800mf 128x192 trunk_output 4x6
torchvision:regnet_y_8gf 128x192 trunk_output 4x6
torchvision:resnet101 128x192 layer4 4x6
torchvision:resnet152 128x192 layer4 4x6
torchvision:resnet18 128x192 layer4 4x6
torchvision:resnet34 128x192 layer4 4x6
torchvision:resnet50 128x192 layer4 4x6
torchvision:resnext101_32x8d 128x192 layer4 4x6
torchvision:resnext101_64x4d 128x192 layer4 4x6
torchvision:resnext50_32x4d 128x192 layer4 4x6
torchvision:shufflenet_v2_x0_5 128x192 conv5 4x6
torchvision:shufflenet_v2_x1_0 128x192 conv5 4x6
torchvision:shufflenet_v2_x1_5 128x192 conv5 4x6
torchvision:shufflenet_v2_x2_0 128x192 conv5 4x6
torchvision:squeezenet1_0 128x192 features 7x11
torchvision:squeezenet1_1 128x192 features 7x11
torchvision:swin_b 128x192 permute 4x6
torchvision:swin_s 128x192 permute 4x6
torchvision:swin_t 128x192 permute 4x6
torchvision:swin_v2_b 128x192 permute 4x6
torchvision:swin_v2_s 128x192 permute 4x6
torchvision:swin_v2_t 128x192 permute 4x6
torchvision:vgg11 128x192 features 4x6
torchvision:vgg11_bn 128x192 features 4x6
torchvision:vgg13 128x192 features 4x6
torchvision:vgg13_bn 128x192 features 4x6
torchvision:vgg16 128x192 features 4x6
torchvision:vgg16_bn 128x192 features 4x6
torchvision:vgg19 128x192 features 4x6
torchvision:vgg19_bn 128x192 features 4x6
torchvision:vit_b_16 128x128 encoder.layers.encoder_layer_11.ln_1 8x8
torchvision:vit_b_32 128x128 encoder.layers.encoder_layer_11.ln_1 4x4
torchvision:vit_h_14 112x112 encoder.layers.encoder_layer_31.ln_1 8x8
torchvision:vit_l_16 128x128 encoder.layers.encoder_layer_23.ln_1 8x8
torchvision:vit_l_32 128x128 encoder.layers.encoder_layer_23.ln_1 4x4
torchvision:wide_resnet101_2 128x192 layer4 4x6
torchvision:wide_resnet50_2 128x192 layer4 4x6
timm:bat_resnext26ts 256x256 final_conv 8x8
timm:beit_base_patch16_224 128x192 blocks.11 8x12
timm:beitv2_base_patch16_224 128x192 blocks.11 8x12
timm:botnet26t_256 128x192 final_conv 4x6
timm:caformer_s18 128x192 stages.3 4x6
timm:cait_xxs24_224 128x192 blocks_token_only.1.norm1 8x12
timm:coat_lite_tiny 128x192 serial_blocks4.1.norm1 4x6
timm:coat_tiny 128x192 parallel_blocks.5.norm14 4x6
timm:coatnet_pico_rw_224 128x192 norm 4x6
timm:convformer_s18 128x192 stages.3 4x6
timm:convit_tiny 128x128 blocks.11.norm1 8x8
timm:convmixer_768_32 128x192 blocks.31 18x27
timm:convnext_atto 128x192 stages.3 4x6
timm:cpubone_nano 128x192 stages.3 4x6 blurred
timm:crossvit_tiny_240 240x240 blocks.2.fusion.1.norm1 20x20
timm:cs3darknet_focus_s 128x192 stages.3 4x6
timm:csatv2 256x384 stages.3 4x6
timm:cspnext_tiny 128x192 stages.3 4x6
timm:davit_tiny 128x192 stages.3 4x6
timm:deit3_small_patch16_224 128x192 blocks.11.norm1 8x12
timm:deit_tiny_distilled_patch16_224 128x192 blocks.11.norm1 8x12
timm:deit_tiny_patch16_224 128x192 blocks.11.norm1 8x12
timm:densenet121 128x192 features.norm5 4x6
timm:dla34 128x192 level5 4x6
timm:dla46x_c 128x192 level5 4x6
timm:dpn48b 128x192 features.conv5_3 4x6
timm:ecaresnet26t 128x192 layer4 4x6
timm:edgenext_xx_small 128x192 stages.3 4x6
timm:efficientformer_l1 224x224 stages.3 7x7
timm:efficientformerv2_s0 128x192 stages.3 4x6
timm:efficientnet_b0 128x192 blocks.6 4x6
timm:efficientvim_m1 256x384 norm.3 4x6
timm:efficientvit_b0 128x192 stages.3 4x6
timm:efficientvit_m0 256x384 stages.2 4x6
timm:ese_vovnet19b_slim_dw 128x192 stages.3 4x6
timm:eva02_tiny_patch14_224 128x192 blocks.11 9x13
timm:fasternet_t0 128x192 stages.3 4x6
timm:fastvit_t8 128x192 stages.3 4x6
timm:flexivit_small 128x192 blocks.11.norm1 8x12
timm:focalnet_tiny_srf 128x192 norm 4x6
timm:gcvit_xxtiny 128x192 stages.3 4x6
timm:gemma4_vit_167m 192x288 encoder.blocks.15 12x18
timm:gernet_s 128x192 final_conv 4x6
timm:ghostnet_050 128x192 blocks.7 4x6
timm:ghostnetv2_100 128x192 blocks.7 4x6
timm:gmlp_ti16_224 128x192 norm 8x12
timm:halonet26t 256x256 final_conv 8x8
timm:halonet_h1 256x256 final_conv 8x8
timm:hardcorenas_b 128x192 blocks.6 4x6
timm:hgnetv2_b0 128x192 stages.3 4x6
timm:hiera_tiny_224 128x192 blocks.11 4x6
timm:hrnet_w18_small 128x192 final_layer 4x6
timm:iformer_t 128x192 stages.3 4x6
timm:inception_next_atto 128x192 stages.3 4x6
timm:inception_resnet_v2 128x192 conv2d_7b 2x4
timm:inception_v3 224x288 Mixed_7c 5x7
timm:inception_v4 224x288 features.21 5x7
timm:lambda_resnet26t 128x192 final_conv 4x6
timm:lcnet_035 128x192 blocks.5 4x6
timm:lcnetv2_small 128x192 stages.3 4x6
timm:legacy_seresnet18 128x192 layer4 4x6
timm:legacy_xception 128x192 act4 4x6
timm:levit_128s 256x384 stages.2 4x6 blurred
timm:levit_conv_128s 256x384 stages.2 4x6 blurred
timm:lowformer_b0 128x192 stages.3 4x6 blurred
timm:mambaout_femto 128x192 stages.3 4x6
timm:maxvit_rmlp_pico_rw_256 128x192 norm 4x6
timm:mixer_s32_224 128x192 norm 4x6
timm:mixnet_s 128x192 blocks.5 4x6
timm:mnasnet_small 128x192 blocks.6 4x6
timm:mobilenetv3_small_050 128x192 blocks.5 4x6
timm:mobilenetv4_conv_small 128x192 blocks.4 4x6
timm:mobilenetv4_hybrid_medium 128x192 blocks.4 4x6
timm:mobilenetv5_300m 128x192 blocks.3 4x6
timm:mobileone_s0 128x192 final_conv 4x6
timm:mobilevit_xxs 128x192 final_conv 4x6
timm:mobilevitv2_050 128x192 final_conv 4x6
timm:mvitv2_small_cls 128x128 stages.3.blocks.1.norm1 4x4
timm:mvitv2_tiny 128x128 norm 4x4
timm:naflexvit_base_patch16_gap 128x192 blocks.11 8x12
timm:naflexvit_base_patch16_parfac_gap 128x192 blocks.11 8x12
timm:nasnetalarge 128x192 act 4x6
timm:nest_tiny 128x128 norm 8x8
timm:nextvit_small 128x192 stages.3 4x6
timm:pit_ti_224 128x192 transformers.2.blocks.3.norm1 4x6
timm:pit_ti_distilled_224 128x192 transformers.2.blocks.3.norm1 4x6
timm:pnasnet5large 128x192 act 4x6
timm:poolformer_s12 128x192 stages.3 4x6
timm:poolformerv2_s12 128x192 stages.3 4x6
timm:pvt_v2_b0 128x192 stages.3 4x6
timm:qwen3_vit_88m 128x192 encoder.blocks.11 8x12
timm:rdnet_tiny 128x192 dense_stages.6 4x6
timm:regnetx_002 128x192 s4 4x6
timm:repghostnet_050 128x192 blocks.7 4x6
timm:repvgg_a0 128x192 final_conv 4x6 blurred
timm:repvit_m0_9 128x192 stages.3 4x6
timm:repvit_m1 128x192 stages.3 4x6
timm:res2net50_26w_4s 128x192 layer4 4x6
timm:res2next50 128x192 layer4 4x6
timm:resmlp_12_224 128x192 blocks.11 8x12
timm:resnest14d 128x192 layer4 4x6
timm:resnet10t 128x192 layer4 4x6
timm:resnet18 128x192 layer4 4x6
timm:resnetv2_18 128x192 stages.3 4x6
timm:resnetv2_50 128x192 stages.3 4x6
timm:resnext50_32x4d 128x192 layer4 4x6
timm:rexnet_100 128x192 features.15 4x6
timm:sam2_hiera_tiny 128x192 blocks.11 4x6
timm:samvit_base_patch16 128x192 neck 8x12
timm:samvit_base_patch16_224 128x192 neck 8x12
timm:selecsls42 256x384 head.3 4x6
timm:sequencer2d_s 128x192 norm 9x13
timm:seresnet50 128x192 layer4 4x6
timm:shvit_s1 256x384 stages.2 4x6
timm:skresnet18 128x192 layer4 4x6
timm:starnet_s050 128x192 stages.3 4x6
timm:starnet_s1 128x192 stages.3 4x6
timm:swiftformer_xs 128x192 stages.3 4x6
timm:swin_s3_tiny_224 128x192 norm 4x6
timm:swin_tiny_patch4_window7_224 128x192 norm 4x6
timm:swinv2_cr_tiny_224 128x192 stages.3 4x6
timm:swinv2_cr_tiny_ns_224 128x192 stages.3 4x6
timm:swinv2_tiny_window16_256 128x192 norm 4x6
timm:swinv2_tiny_window8_256 128x192 norm 4x6
timm:test_byobnet 128x192 final_conv 4x6
timm:test_coatnet 128x192 norm 4x6
timm:test_convnext 128x192 stages.3 4x6
timm:test_mambaout 128x192 stages.3 4x6
timm:test_nfnet 128x192 final_conv 4x6
timm:test_vit 128x192 blocks.5.norm1 8x12
timm:test_vit_relpos 128x192 blocks.8 8x12
timm:tf_efficientnetv2_b0 128x192 blocks.5 4x6
timm:tiny_vit_5m_224 128x192 stages.3 4x6 blurred
timm:tnt_s_legacy_patch16_224 128x192 blocks.11.norm_out 8x12
timm:tnt_s_patch16_224 128x192 blocks.11.norm_out 8x12
timm:tresnet_m 128x192 body.layer4 4x6
timm:twins_pcpvt_small 128x192 norm 4x6
timm:twins_svt_small 128x192 norm 4x6
timm:vgg11 128x192 features 4x6
timm:vgg11_bn 128x192 features 4x6
timm:visformer_tiny 128x192 stage3 4x6 blurred
timm:vit_base_patch32_clip_224 128x192 blocks.11.norm1 4x6
timm:vit_medium_patch16_reg4_gap_256 128x192 blocks.11 8x12
timm:vit_relpos_small_patch16_224 128x192 blocks.11 8x12
timm:vit_small_patch14_reg4_dinov2 128x192 blocks.11.norm1 9x13
timm:vit_so150m_patch16_reg4_map_256 128x192 norm 8x12
timm:vit_srelpos_small_patch16_224 128x192 norm 8x12
timm:vit_tiny_patch16_dinov3_qkvb 128x192 norm 8x12
timm:vit_tiny_r_s16_p8_224 128x192 blocks.11.norm1 4x6
timm:vit_wee_patch16_reg1_gap_256 128x192 blocks.13 8x12
timm:vitamin_small_224 128x192 blocks.13 8x12
timm:volo_d1_224 128x192 norm 8x12
timm:xception41 128x192 blocks.12 4x6
timm:xception41p 128x192 blocks.12 4x6
timm:xcit_nano_12_p16_224 128x192 cls_attn_blocks.1.norm1 8x12
timm:xcit_nano_12_p8_224 128x192 cls_attn_blocks.1.norm1 16x24
timm:xcit_tiny_12_p8_224 128x192 cls_attn_blocks.1.norm1 16x24
"""

FAMILIES = tuple(map(_row, filter(None, _TABLE.splitlines())))
