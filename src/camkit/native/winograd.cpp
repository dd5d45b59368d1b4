// Winograd's F(4x4, 3x3) on the CPU, called by winograd.py, in three steps for each block of tiles.
//
// A tile is 6x6 inputs that give 4x4 outputs. Its 36 values are transformed, multiplied by as many
// transformed weights (one matrix product for each of the 36), and the products are transformed back.
// Everything is channels-last, so a vector holds the same position of several channels.

#include <algorithm>
#include <cstdint>
#include <memory>

// Vectors as wide as the machine has them, and as many sums as fit into its registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, VECTORS = 4, ROWS = 6;
#elif defined(__AVX__)
constexpr int LANES = 8, VECTORS = 2, ROWS = 6;
#else
constexpr int LANES = 4, VECTORS = 4, ROWS = 4;
#endif

constexpr int64_t PANEL = 64;            // columns of weights that lie together; as in winograd.py
constexpr int64_t BLOCK = 1 << 19;       // transformed values of a block of tiles: 2 MiB, for the caches
constexpr int64_t APART = 16;            // keeps the 36 matrices off the same cache lines

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline Vec& at(float* place) { return *reinterpret_cast<Vec*>(place); }
static inline const Vec& at(const float* place) { return *reinterpret_cast<const Vec*>(place); }

// B^T d, along one side of a tile.
static inline void transform_input(const Vec d[6], Vec t[6]) {
  const Vec a = d[4] - 4.f * d[2], b = d[3] - 4.f * d[1], c = d[4] - d[2], e = 2.f * (d[3] - d[1]);
  t[0] = 4.f * d[0] - 5.f * d[2] + d[4];
  t[1] = a + b;
  t[2] = a - b;
  t[3] = c + e;
  t[4] = c - e;
  t[5] = 4.f * d[1] - 5.f * d[3] + d[5];
}

// A^T m, along one side of a tile.
static inline void transform_output(const Vec m[6], Vec y[4]) {
  const Vec a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
  y[0] = m[0] + a + c;
  y[1] = b + 2.f * e;
  y[2] = a + 4.f * c;
  y[3] = b + 8.f * e + m[5];
}

// R rows of a product: left [R, depth], right [depth, PANEL], result [R, PANEL] with `stride` between rows.
template <int R>
static void multiply_rows(const float* left, const float* right, float* result, int64_t depth, int64_t stride) {
  for (int64_t column = 0; column < PANEL; column += VECTORS * LANES) {
    Vec sum[R][VECTORS] = {};
    for (int64_t k = 0; k < depth; ++k) {
      Vec line[VECTORS];
      for (int v = 0; v < VECTORS; ++v) line[v] = at(right + k * PANEL + column + v * LANES);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[r][v] += left[r * depth + k] * line[v];
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < VECTORS; ++v) at(result + r * stride + column + v * LANES) = sum[r][v];
  }
}

template <int R = ROWS>
static void multiply(const float* left, const float* right, float* result, int64_t rows, int64_t depth,
                     int64_t stride) {
  for (; rows >= R; rows -= R, left += R * depth, result += R * stride)
    multiply_rows<R>(left, right, result, depth, stride);
  if constexpr (R > 1)
    if (rows > 0) multiply<R - 1>(left, right, result, rows, depth, stride);
}

// x [batch, height, width, channels], weights [36, outputs / PANEL, channels, PANEL], bias [outputs],
// residual (or null) and y [batch, height + 2 pad_y - 2, width + 2 pad_x - 2, outputs].
extern "C" void winograd(const float* x, const float* weights, const float* bias, const float* residual,
                         int relu, float* y, int64_t batch, int64_t channels, int64_t height, int64_t width,
                         int64_t outputs, int64_t pad_y, int64_t pad_x, int threads) {
  const int64_t rows = height + 2 * pad_y - 2, columns = width + 2 * pad_x - 2;
  const int64_t down = (rows + 3) / 4, across = (columns + 3) / 4, tiles = batch * down * across;
  const int64_t block = std::min(tiles, std::max<int64_t>(ROWS, BLOCK / (36 * channels)));
  const int64_t step = block * channels + APART, product_step = block * outputs + APART;
  const std::unique_ptr<float[]> scratch(new float[36 * (step + product_step)]);
  float* const transformed = scratch.get();
  float* const products = transformed + 36 * step;

#pragma omp parallel num_threads(threads)
  for (int64_t first = 0; first < tiles; first += block) {
    const int64_t count = std::min(block, tiles - first);

#pragma omp for schedule(static)
    for (int64_t n = 0; n < count; ++n) {
      const int64_t tile = first + n, image = tile / (down * across);
      const int64_t top = tile / across % down * 4 - pad_y, left = tile % across * 4 - pad_x;
      for (int64_t c = 0; c < channels; c += LANES) {
        Vec half[6][6], d[6], t[6];
        for (int j = 0; j < 6; ++j) {
          for (int i = 0; i < 6; ++i) {
            const int64_t row = top + i, column = left + j;
            const bool inside = row >= 0 && row < height && column >= 0 && column < width;
            d[i] = inside ? at(x + ((image * height + row) * width + column) * channels + c) : Vec{};
          }
          transform_input(d, t);
          for (int i = 0; i < 6; ++i) half[i][j] = t[i];
        }
        for (int i = 0; i < 6; ++i) {
          transform_input(half[i], t);
          for (int j = 0; j < 6; ++j) at(transformed + (i * 6 + j) * step + n * channels + c) = t[j];
        }
      }
    }

#pragma omp for schedule(static) collapse(2)
    for (int64_t p = 0; p < 36; ++p)
      for (int64_t k = 0; k < outputs; k += PANEL)
        multiply(transformed + p * step, weights + (p * outputs + k) * channels,
                 products + p * product_step + k, count, channels, outputs);

#pragma omp for schedule(static)
    for (int64_t n = 0; n < count; ++n) {
      const int64_t tile = first + n, image = tile / (down * across);
      const int64_t top = tile / across % down * 4, left = tile % across * 4;
      for (int64_t k = 0; k < outputs; k += LANES) {
        Vec half[4][6], m[6], t[4];
        for (int j = 0; j < 6; ++j) {
          for (int i = 0; i < 6; ++i) m[i] = at(products + (i * 6 + j) * product_step + n * outputs + k);
          transform_output(m, t);
          for (int i = 0; i < 4; ++i) half[i][j] = t[i];
        }
        for (int i = 0; i < 4 && top + i < rows; ++i) {
          transform_output(half[i], t);
          for (int j = 0; j < 4 && left + j < columns; ++j) {
            const int64_t place = ((image * rows + top + i) * columns + left + j) * outputs + k;
            Vec value = t[j] + at(bias + k);
            if (residual) value += at(residual + place);
            if (relu) value = value < 0.f ? Vec{} : value;  // so that NaN stays NaN
            at(y + place) = value;
          }
        }
      }
    }
  }
}
