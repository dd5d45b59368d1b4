// Two accelerators in CPU memory. Every kernel runs on the CPU, but tensors of two devices must not meet, host
// waits are counted or refused, and float64 can be missing. For tests: see __init__.py.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <atomic>
#include <set>
#include <string>

using at::Tensor;
using c10::IntArrayRef;
using std::optional;

static constexpr auto kFake = c10::DeviceType::PrivateUse1;
static constexpr c10::DeviceIndex kCount = 2;
static thread_local c10::DeviceIndex current = 0;
static thread_local int inside = 0;  // a kernel, whose own copies are none of the program
static std::atomic<long> waits{0};
static std::atomic<long> bytes_left{-1};  // negative: no limit
static thread_local bool refuses_waits = false;
static bool has_double = true;

struct Inside {
  Inside() { ++inside; }
  ~Inside() { --inside; }
};

static void wait(const std::string& what) {
  if (inside) return;
  ++waits;
  TORCH_CHECK(!refuses_waits, "the host waits for the device: ", what);
}

static void check_type(c10::ScalarType type) {
  TORCH_CHECK_TYPE(has_double || inside || type != c10::ScalarType::Double, "the fake device has no float64");
}

// --- memory, device and stream --------------------------------------------------------------------------------

struct Allocator final : at::Allocator {
  at::DataPtr allocate(size_t n) override {
    if (bytes_left >= 0 && static_cast<long>(n) > bytes_left)
      TORCH_CHECK_WITH(OutOfMemoryError, false, "fake out of memory. Tried to allocate ", n, " bytes");
    void* data = c10::alloc_cpu(n);
    return {data, data, &c10::free_cpu, c10::Device(kFake, current)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, std::size_t n) const final { default_copy_data(to, from, n); }
};
static Allocator allocator;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &allocator);

namespace at::detail {
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kFake; }
  c10::Device exchangeDevice(c10::Device d) const override {
    auto before = getDevice();
    setDevice(d);
    return before;
  }
  c10::Device getDevice() const override { return c10::Device(kFake, current); }
  void setDevice(c10::Device d) const override { if (d.index() >= 0) current = d.index(); }
  void uncheckedSetDevice(c10::Device d) const noexcept override { if (d.index() >= 0) current = d.index(); }
  c10::Stream getStream(c10::Device d) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, d); }
  c10::Stream getNewStream(c10::Device d, int = 0) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override { return getStream(s.device()); }
  c10::DeviceIndex deviceCount() const noexcept override { return kCount; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { wait("synchronize"); }
  void synchronizeDevice(const c10::DeviceIndex) const override { wait("synchronize"); }
  void synchronizeEvent(void*) const override { wait("synchronize"); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);
}  // namespace at::detail

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kCount; }
  void setCurrentDevice(c10::DeviceIndex index) const override { current = index; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override { return std::exchange(current, index); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return index < 0 ? current : std::exchange(current, index);
  }
  at::Device getDeviceFromPtr(void*) const override { return at::Device(kFake, current); }
  bool isPinnedPtr(const void*) const override { return false; }
};
static Hooks hooks;
static const int registered = (at::RegisterPrivateUse1HooksInterface(&hooks), 0);

struct On {  // makes a device the current one for a while
  c10::DeviceIndex before;
  explicit On(c10::DeviceIndex index) : before(current) { if (index >= 0) current = index; }
  ~On() { current = before; }
};

// --- tensors --------------------------------------------------------------------------------------------------

static const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);

static Tensor empty(IntArrayRef size, optional<at::ScalarType> type, optional<at::Layout>, optional<at::Device> device,
                    optional<bool>, optional<at::MemoryFormat> format) {
  check_type(c10::dtype_or_default(type));
  On here(device ? device->index() : -1);
  return at::detail::empty_generic(size, &allocator, keys, c10::dtype_or_default(type), format);
}

static Tensor empty_strided(IntArrayRef size, IntArrayRef stride, optional<at::ScalarType> type, optional<at::Layout>,
                            optional<at::Device> device, optional<bool>) {
  check_type(c10::dtype_or_default(type));
  On here(device ? device->index() : -1);
  return at::detail::empty_strided_generic(size, stride, &allocator, keys, c10::dtype_or_default(type));
}

static Tensor seen(const Tensor& t) {  // the same memory as a tensor of the CPU
  if (t.is_cpu()) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), [t](void*) {}, at::TensorOptions().dtype(t.dtype()));
}

static Tensor moved(const Tensor& t, c10::Device device) {
  Inside kernel;
  return t.defined() ? t.to(device) : t;
}

static Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  if (to.is_cpu()) wait("a copy to the CPU");
  else if (from.is_cpu() && !non_blocking) wait("a copy from the CPU");
  Tensor there = seen(to);
  there.copy_(seen(from));
  return to;
}

static Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) const_cast<Tensor&>(to).resize_(from.sizes());
  return copy_from(from, to, false);
}

static at::Scalar item(const Tensor& t) {
  wait("item");
  return seen(t).item();
}

static const Tensor& resize(const Tensor& t, c10::SymIntArrayRef size, optional<at::MemoryFormat>) {
  auto* tensor = t.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  const size_t wanted = (tensor->numel() + tensor->storage_offset()) * t.itemsize();
  const c10::Storage& storage = tensor->storage();
  if (storage.nbytes() < wanted) {
    On here(t.device().index());
    auto data = allocator.allocate(wanted);
    if (storage.nbytes()) std::memcpy(data.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(wanted);
  }
  return t;
}

static Tensor& set_part(Tensor& t, at::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
  t.unsafeGetTensorImpl()->set_storage_offset(offset);
  t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return t;
}
static Tensor& set_storage(Tensor& t, at::Storage storage) {
  return set_part(t, storage, 0, static_cast<int64_t>(storage.nbytes() / t.itemsize()), 1);
}
static Tensor& set_tensor(Tensor& t, const Tensor& source) {
  return set_part(t, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

// --- operations -----------------------------------------------------------------------------------------------

// CUDA, too, takes indices and masks from the CPU for these, and waits for these.
static const std::set<std::string> mixed{"aten::index", "aten::index_put", "aten::index_put_",
                                         "aten::_index_put_impl_", "aten::copy_", "aten::nonzero"};
static const std::set<std::string> waiting{"aten::equal", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"};

static void anything(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string& name = op.schema().name();
  std::set<std::string> devices;
  auto look = [&](const Tensor& t) {
    if (!t.defined()) return;
    if (!t.is_cpu() || t.dim() > 0) devices.insert(t.device().str());
    if (!t.is_cpu()) check_type(t.scalar_type());
  };
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) look(value.toTensor());
    else if (value.isTensorList()) for (const Tensor& t : value.toTensorList()) look(t);
    else if (value.isOptionalTensorList())
      for (const optional<Tensor> t : value.toOptionalTensorList()) if (t) look(*t);
  }
  TORCH_CHECK(devices.size() < 2 || mixed.count(name),
              "Expected all tensors to be on the same device, but found at least two devices, ", *devices.begin(),
              " and ", *devices.rbegin(), "! (", name, ")");
  if (waiting.count(name)) wait(name);
  Inside kernel;
  at::native::cpu_fallback(op, stack);
}

static void same(std::initializer_list<Tensor> all) {
  for (const Tensor& t : all)
    TORCH_CHECK(!t.defined() || t.device() == all.begin()->device(), "Input type (", all.begin()->device(),
                ") and weight type (", t.device(), ") should be the same");
}

static Tensor convolution(const Tensor& x, const Tensor& w, const optional<Tensor>& b, IntArrayRef stride,
                          IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef out, int64_t groups) {
  same({x, w, b ? *b : Tensor()});
  optional<Tensor> bias = b && b->defined() ? optional<Tensor>(seen(*b)) : std::nullopt;
  return moved(at::convolution(seen(x), seen(w), bias, stride, padding, dilation, transposed, out, groups), x.device());
}

static std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& g, const Tensor& x, const Tensor& w, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
    bool transposed, IntArrayRef out, int64_t groups, std::array<bool, 3> mask) {
  same({g, x, w});
  std::vector<int64_t> bias{w.size(transposed ? 1 : 0) * (transposed ? groups : 1)};
  auto [a, b, c] = at::convolution_backward(seen(g), seen(x), seen(w), IntArrayRef(bias), stride, padding, dilation,
                                            transposed, out, groups, mask);
  return {moved(a, x.device()), moved(b, x.device()), moved(c, x.device())};
}

static int64_t attention(const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&, double, bool,
                         optional<double>, bool) {
  return 0;  // the plain one
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&anything>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_fused_sdp_choice", TORCH_FN(attention));
  m.impl("_local_scalar_dense", TORCH_FN(item));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
  m.impl("convolution_overrideable", TORCH_FN(convolution));
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("resize_", TORCH_FN(resize));
  m.impl("set_.source_Storage", TORCH_FN(set_storage));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_part));
  m.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("view", TORCH_FN(at::native::view));
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("waits", [] { return waits.load(); });
  m.def("refuse_waits", [](bool on) { refuses_waits = on; });  // of this thread
  m.def("has_double", [](bool on) { has_double = on; });
  m.def("limit", [](long bytes) { bytes_left = bytes; });  // of one allocation
}
