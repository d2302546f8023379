// PTX instructions on matrices. Which element a lane holds: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating
// point type", "Register Fragments for wgmma.mma_async.m64nNk16", "ldmatrix". Sums of products are in double, so that
// nothing is lost before the one rounding at the end of an instruction.
#pragma once
#include "ptx.h"

namespace ptx {

constexpr int K = 16;

// Elements [16][K] of a fragment of A from the registers of a warp's lanes.
template <class N, class Register>
void gather_a(Register reg, double (*a)[K]) {
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < K; ++k)
      a[row][k] = N::value(reg(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2), k % 2);
}

struct Mma {
  uint32_t a[4], b[2];
  float c[4];
  float* d[4];
};
template <class N>
void mma_all(Mma** lanes) {
  double a[16][K];
  gather_a<N>([&](int lane, int i) { return lanes[lane]->a[i]; }, a);
  for (int i = 0; i < WARP; ++i)
    for (int z = 0; z < 4; ++z) {
      int row = i / 4 + z / 2 * 8, column = i % 4 * 2 + z % 2;
      double sum = lanes[i]->c[z];
      for (int k = 0; k < K; ++k)
        sum += a[row][k] * N::value(lanes[column * 4 + k % 8 / 2]->b[k / 8], k % 2);
      *lanes[i]->d[z] = sum;
    }
}
template <class N>
void mma(std::initializer_list<float*> d, std::initializer_list<uint32_t> a, std::initializer_list<uint32_t> b,
         std::initializer_list<float> c) {
  Mma part;
  std::copy(a.begin(), a.end(), part.a);
  std::copy(b.begin(), b.end(), part.b);
  std::copy(c.begin(), c.end(), part.c);
  std::copy(d.begin(), d.end(), part.d);
  together(own_warp(), WARP, part, mma_all<N>);
}

// A matrix in shared memory by its descriptor (PTX ISA, "Matrix Descriptor"): K-major, in the 128-byte swizzle.
struct Matrix {
  uint8_t* base;
  uint64_t offset, stride;
  explicit Matrix(uint64_t descriptor)
      : base(current->block->shared), offset((descriptor & 0x3FFF) << 4), stride((descriptor >> 32 & 0x3FFF) << 4) {
    require(descriptor >> 62 == 1, "a matrix that is not in the 128-byte swizzle");
    require((descriptor >> 49 & 7) == 0, "a matrix with a base offset");
  }
  template <class N>
  double element(int row, int k) const {
    uint8_t* at = base + offset + row / 8 * stride + row % 8 * 128 + k * 2;
    at = (uint8_t*)swizzled((uintptr_t)at, 3);
    require_fenced(at, 2);
    return N::value(*(uint16_t*)at, 0);
  }
};

struct Wgmma {
  std::vector<float*> d;
  uint32_t a[4];
  uint64_t a_matrix, b_matrix;
  bool adds;
  std::shared_ptr<Work> work;
};
// D[64][n] (+)= A[64][K] B[n][K]^T, A in registers or in shared memory.
template <class N>
void wgmma_run(const std::vector<Wgmma>& lanes, const Matrix* a_matrix, Matrix b_matrix) {
  int n = lanes[0].d.size() * 2;
  std::vector<double> b(n * K);
  for (int column = 0; column < n; ++column)
    for (int k = 0; k < K; ++k) b[column * K + k] = b_matrix.element<N>(column, k);
  for (int warp = 0; warp < 4; ++warp) {
    double a[16][K];
    if (a_matrix) {
      for (int row = 0; row < 16; ++row)
        for (int k = 0; k < K; ++k) a[row][k] = a_matrix->element<N>(warp * 16 + row, k);
    } else {
      gather_a<N>([&](int lane, int i) { return lanes[warp * WARP + lane].a[i]; }, a);
    }
    for (int i = 0; i < WARP; ++i)
      for (int z = 0; z < n / 2; ++z) {
        const Wgmma& own = lanes[warp * WARP + i];
        int row = i / 4 + z / 2 % 2 * 8, column = z / 4 * 8 + i % 4 * 2 + z % 2;
        double sum = own.adds ? *own.d[z] : 0;
        for (int k = 0; k < K; ++k) sum += a[row][k] * b[column * K + k];
        *own.d[z] = sum;
      }
  }
}
template <class N>
void wgmma(Wgmma& part, bool registers) {
  together(own_warpgroup(), WARPGROUP, part, [&](Wgmma** lanes) {
    std::vector<Wgmma> all;
    for (int i = 0; i < WARPGROUP; ++i) {
      require(lanes[i]->b_matrix == part.b_matrix, "descriptors that differ in a warpgroup");
      require(registers || lanes[i]->a_matrix == part.a_matrix, "descriptors that differ in a warpgroup");
      all.push_back(*lanes[i]);
    }
    auto a = registers ? nullptr : std::make_shared<Matrix>(part.a_matrix);
    auto begun = work([=, b = Matrix(part.b_matrix)] { wgmma_run<N>(all, a.get(), b); });
    for (int i = 0; i < WARPGROUP; ++i) lanes[i]->work = begun;
  });
  current->products.begun.push_back(part.work);
}
template <class N>
void wgmma(std::initializer_list<float*> d, std::initializer_list<uint32_t> a, uint64_t b, bool adds, int, int, int) {
  Wgmma part{d, {}, 0, b, adds, nullptr};
  std::copy(a.begin(), a.end(), part.a);
  wgmma<N>(part, true);
}
template <class N>
void wgmma(std::initializer_list<float*> d, uint64_t a, uint64_t b, bool adds, int, int, int, int) {
  Wgmma part{d, {}, a, b, adds, nullptr};
  wgmma<N>(part, false);
}
inline void wgmma_commit() { commit(current->products); }
inline void wgmma_wait(int kept) { wait_group(current->products, kept); }

// 8x8 matrices of 16-bit elements: lane l has elements 2 * (l % 4) and the next one of row l / 4; if transposed, of a column.
template <bool transposed, class Function>
void each_element(int lane, Function function) {
  for (int half = 0; half < 2; ++half) {
    int major = lane / 4, minor = lane % 4 * 2 + half;
    function(transposed ? minor : major, transposed ? major : minor, half);
  }
}
struct Rows {
  uint8_t* row;
  uint32_t value[4];
};
template <bool transposed>
void stmatrix(uint32_t address, std::initializer_list<uint32_t> values) {
  Rows part{place(address, 16), {}};
  written(part.row, 16);
  std::copy(values.begin(), values.end(), part.value);
  together(own_warp(), WARP, part, [&](Rows** lanes) {
    for (size_t j = 0; j < values.size(); ++j)
      for (int i = 0; i < WARP; ++i)
        each_element<transposed>(i, [&](int row, int column, int half) {
          ((uint16_t*)lanes[j * 8 + row]->row)[column] = lanes[i]->value[j] >> 16 * half;
        });
  });
}
template <bool transposed>
void ldmatrix(std::initializer_list<uint32_t*> to, uint32_t address) {
  Rows part{place(address, 16), {}};
  together(own_warp(), WARP, part, [&](Rows** lanes) {
    for (size_t j = 0; j < to.size(); ++j)
      for (int i = 0; i < WARP; ++i)
        each_element<transposed>(i, [&](int row, int column, int half) {
          lanes[i]->value[j] |= (uint32_t)((const uint16_t*)lanes[j * 8 + row]->row)[column] << 16 * half;
        });
  });
  size_t j = 0;
  for (uint32_t* one : to) *one = part.value[j++];
}
inline void movmatrix(uint32_t& to, uint32_t value) {
  struct Part { uint32_t value, result; } part{value, 0};
  together(own_warp(), WARP, part, [](Part** lanes) {
    for (int i = 0; i < WARP; ++i)
      for (int half = 0; half < 2; ++half) {
        int row = i % 4 * 2 + half, column = i / 4;  // of the matrix as it was
        uint32_t there = lanes[row * 4 + column / 2]->value >> 16 * (column % 2) & 0xFFFF;
        lanes[i]->result |= there << 16 * half;
      }
  });
  to = part.result;
}

}  // namespace ptx
