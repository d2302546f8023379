// PTX instructions without matrices (PTX ISA, "Instructions"), as functions of their operands in order.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "numbers.h"
#include "threads.h"

// What CUDA's headers declare.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n)
#define threadIdx (own_index())
#define blockIdx (current->block->index)
typedef unsigned char uchar;

inline Index own_index() {
  const Index& shape = current->block->shape;
  return {current->index % shape.x, current->index / shape.x % shape.y, current->index / (shape.x * shape.y)};
}

template <class T>
struct alignas(sizeof(T) * 2) Two { T x, y; };
template <class T>
struct alignas(sizeof(T) * 4) Four { T x, y, z, w; };
using half2 = Two<half>;
using half4 = Four<half>;
using nv_bfloat162 = Two<nv_bfloat16>;
using nv_bfloat164 = Four<nv_bfloat16>;
using float2 = Two<float>;
using float4 = Four<float>;
using uint2 = Two<unsigned>;
using uint4 = Four<unsigned>;

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class A, class B>
auto min(A a, B b) { return b < a ? b : a; }
template <class A, class B>
auto max(A a, B b) { return a < b ? b : a; }

inline void __syncthreads() { meet(current->block->barriers[0], current->block->threads); }
inline void __syncwarp() { meet(own_warp().meeting, WARP); }
inline int __ffs(unsigned value) { return value ? __builtin_ctz(value) + 1 : 0; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  uint64_t both = (uint64_t)b << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= (both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}

template <class T, class Source>
T shuffled(T value, Source source) {
  struct Part { T value, result; } part{value, value};
  together(own_warp(), WARP, part, [&](Part** lanes) {
    for (int i = 0; i < WARP; ++i) lanes[i]->result = lanes[source(i)]->value;
  });
  return part.result;
}
template <class T>
T __shfl_sync(unsigned, T value, int source, int = WARP) {
  // Lanes may differ in their source
  struct Part { T value; int source; T result; } part{value, source, value};
  together(own_warp(), WARP, part, [](Part** lanes) {
    for (int i = 0; i < WARP; ++i) lanes[i]->result = lanes[lanes[i]->source % WARP]->value;
  });
  return part.result;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int = WARP) {
  return shuffled(value, [=](int i) { return i ^ mask; });
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance, int = WARP) {
  return shuffled(value, [=](int i) { return i < distance ? i : i - distance; });
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  struct Part { bool vote; unsigned result; } part{vote, 0};
  together(own_warp(), WARP, part, [](Part** lanes) {
    unsigned all = 0;
    for (int i = 0; i < WARP; ++i) all |= (unsigned)lanes[i]->vote << i;
    for (int i = 0; i < WARP; ++i) lanes[i]->result = all;
  });
  return part.result;
}

namespace ptx {

// A place that an instruction reads or writes.
inline uint8_t* aligned(uint8_t* at, size_t alignment) {
  require((uintptr_t)at % alignment == 0, "a misaligned address");
  return at;
}
inline uint8_t* place(uint32_t shared, size_t bytes, size_t alignment) {
  require(shared % SHARED_BYTES + bytes <= SHARED_BYTES, "memory beyond a block's shared memory");
  return aligned(memory(shared), alignment);
}
inline uint8_t* place(const void* global, size_t bytes, size_t alignment) {
  require_given(global, bytes);
  return aligned((uint8_t*)global, alignment);
}
template <class Address>
uint8_t* place(Address address, size_t bytes) { return place(address, bytes, bytes); }

inline uint32_t plus(uint32_t address, int bytes) { return address + bytes; }
inline const void* plus(const void* address, int bytes) { return (const char*)address + bytes; }

template <class T, class Address>
void ld(std::initializer_list<T*> to, Address address) {
  const T* from = (const T*)place(address, to.size() * sizeof(T));
  for (T* one : to) *one = *from++;
}
// Of a flag that another block sets: whoever reads it again and again must let that one run.
template <class T, class Address>
void ld_acquire(std::initializer_list<T*> to, Address address) {
  ++stalled;
  give_way();
  ld(to, address);
}
template <class T, class Address>
void st(Address address, std::initializer_list<T> values) {
  T* to = (T*)place(address, values.size() * sizeof(T));
  if constexpr (std::is_same_v<Address, uint32_t>) written((uint8_t*)to, values.size() * sizeof(T));
  for (T one : values) *to++ = one;
}

using ::fence_async;
inline void thread_exit() {
  current->done = true;
  for (;;) give_way();
}
inline void lop3(uint32_t& d, uint32_t a, uint32_t b, uint32_t c, int table) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  d = result;
}
template <class N>
void fma(uint32_t& d, uint32_t a, uint32_t b, uint32_t c) {
  // A product of two such numbers is exact in a double, and so is its sum with a third one here
  auto one = [&](int half) { return std::fma(N::value(a, half), N::value(b, half), N::value(c, half)); };
  d = N::pair(one(0), one(1));
}
template <class N>
void pack(uint32_t& d, float high, float low) { d = N::pair(low, high); }

inline void bar_sync(int id, int count) { meet(current->block->barriers[id], count); }

// Clusters: arrivals count for the round that they came in.
inline void cluster_arrive() {
  Meeting& meeting = *current->block->cluster;
  current->cluster_round = meeting.round;
  if (++meeting.arrived == current->block->threads * current->block->blocks_of_cluster) {
    meeting.arrived = 0;
    ++meeting.round;
    stalled = 0;
  }
}
inline void cluster_wait() {
  wait_until([] { return current->block->cluster->round != current->cluster_round; });
}
inline void cluster_rank(uint32_t& d) { d = current->block->slot - current->block->first_of_cluster; }
inline void mapa(uint32_t& d, uint32_t address, uint32_t rank) {
  d = (current->block->first_of_cluster + rank) << SHARED_BITS | address % SHARED_BYTES;
}

// mbarrier: of the current phase, arrivals and bytes to come.
struct Barrier {
  uint64_t count : 12, pending : 12, phase : 1;
  int64_t bytes : 32;
  void settle() {
    if (pending || bytes) return;
    phase ^= 1;
    pending = count;
    stalled = 0;
  }
};
static_assert(sizeof(Barrier) == 8);
static std::map<Barrier*, Group> promised;  // copies under way that will complete bytes of it

inline Barrier& barrier(uint32_t address) { return *(Barrier*)place(address, 8); }
inline void mbarrier_init(uint32_t address, uint32_t count) {
  Barrier& made = barrier(address);
  made.count = made.pending = count;
  made.phase = 0;
  made.bytes = 0;
  promised.erase(&made);
}
inline void mbarrier_arrive(uint32_t address) {
  require(barrier(address).pending, "more arrivals at a barrier than it counts");
  --barrier(address).pending;
  barrier(address).settle();
}
inline void mbarrier_expect(uint32_t address, uint32_t bytes) {
  barrier(address).bytes += bytes;
  mbarrier_arrive(address);
}
inline void mbarrier_wait(uint32_t address, int parity) {
  Barrier& waited = barrier(address);
  wait_until([&] {
    if (late && waited.phase == (parity & 1)) {
      Group copies = std::move(promised[&waited]);
      promised.erase(&waited);
      for (auto& copy : copies) copy->run();
    }
    return waited.phase != (parity & 1);
  });
}
template <class Function>
void promise(uint32_t address, uint32_t bytes, Function copy) {
  Barrier& told = barrier(address);
  auto begun = work([=, &told] {
    copy();
    told.bytes -= bytes;
    told.settle();
  });
  if (late) promised[&told].push_back(begun);
}

inline void cp_async(uint32_t to, const void* from, int bytes, int read) {
  uint8_t* target = place(to, bytes);
  const uint8_t* source = read ? place(from, read, bytes) : nullptr;
  current->copies.begun.push_back(work([=] {
    if (read) std::memcpy(target, source, read);
    std::memset(target + read, 0, bytes - read);
    written(target, bytes);
  }));
}
inline void cp_async(uint32_t to, const void* from, int bytes) { cp_async(to, from, bytes, bytes); }
inline void cp_async_commit() { commit(current->copies); }
inline void cp_async_wait(int kept) { wait_group(current->copies, kept); }

inline void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t told) {
  uint8_t* target = place(to, bytes, 16);
  const uint8_t* source = place(from, bytes, 16);
  require(bytes % 16 == 0, "a bulk copy of a number of bytes that is no multiple of 16");
  promise(told, bytes, [=] { std::memcpy(target, source, bytes); });
}

}  // namespace ptx

// A tensor map of two dimensions, as `cuTensorMapEncodeTiled` was asked for.
struct CUtensorMap {
  uint8_t* base;
  uint64_t columns, rows, row_bytes, box_columns, box_rows, swizzle, element_bytes;
  uint64_t box_bytes() const { return box_rows * box_columns * element_bytes; }
};

namespace ptx {

// 16-byte pieces of shared memory change places within 8 rows of 128 bytes (swizzles: none, 32, 64, 128 bytes).
inline uintptr_t swizzled(uintptr_t address, int kind) {
  return address ^ ((address >> 7 & ((1 << kind) - 1)) << 4);
}
inline CUtensorMap tensor_map(const void* pointer) {
  CUtensorMap map = *(const CUtensorMap*)pointer;
  require_given(map.base, (map.rows - 1) * map.row_bytes + map.columns * map.element_bytes);
  return map;
}
// Moves a box between shared memory and the tensor; what is outside of the tensor is 0, or left alone.
inline void move_box(const CUtensorMap& map, uint8_t* box, int64_t column, int64_t row, bool load) {
  for (int64_t r = 0; r < (int64_t)map.box_rows; ++r) {
    for (int64_t c = 0; c < (int64_t)map.box_columns; ++c) {
      uintptr_t at = (uintptr_t)box + (r * map.box_columns + c) * map.element_bytes;
      uint8_t* inner = (uint8_t*)swizzled(at, map.swizzle);
      uint8_t* outer = map.base + (row + r) * (int64_t)map.row_bytes + (column + c) * (int64_t)map.element_bytes;
      bool inside = row + r >= 0 && row + r < (int64_t)map.rows && column + c >= 0 && column + c < (int64_t)map.columns;
      if (!load) require_fenced(inner, map.element_bytes);
      if (load && inside) std::memcpy(inner, outer, map.element_bytes);
      if (load && !inside) std::memset(inner, 0, map.element_bytes);
      if (!load && inside) std::memcpy(outer, inner, map.element_bytes);
    }
  }
}
inline void tensor_load(uint32_t to, const void* pointer, std::initializer_list<int> at, uint32_t told) {
  CUtensorMap map = tensor_map(pointer);
  uint8_t* box = place(to, map.box_bytes(), 128);
  int64_t column = at.begin()[0], row = at.begin()[1];
  promise(told, map.box_bytes(), [=] { move_box(map, box, column, row, true); });
}
inline void tensor_store(const void* pointer, std::initializer_list<int> at, uint32_t from) {
  CUtensorMap map = tensor_map(pointer);
  uint8_t* box = place(from, map.box_bytes(), 128);
  int64_t column = at.begin()[0], row = at.begin()[1];
  current->stores.begun.push_back(work([=] { move_box(map, box, column, row, false); }));
}
inline void bulk_commit() { commit(current->stores); }
inline void bulk_wait(int kept) { wait_group(current->stores, kept); }

}  // namespace ptx
