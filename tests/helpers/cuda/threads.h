// Threads of a grid as fibers of one thread of the CPU. Whoever waits lets the next one run; if nobody can go on, the
// run fails. Blocks that run at the same time have shared memory of their own, filled with NaN at first.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

constexpr int WARP = 32, WARPGROUP = 128;
// Matrix descriptors have 18 bits of an address; those above say whose shared memory it is.
constexpr int SHARED_BITS = 18;
constexpr size_t SHARED_BYTES = 1 << SHARED_BITS, STACK_BYTES = 256 << 10;
// What is told of a write to shared memory is told of so many bytes.
constexpr size_t PIECE_BYTES = 16;

struct Index { int x, y, z; };

// Where threads wait until all have come.
struct Meeting {
  int arrived = 0;
  uint64_t round = 0;
};

// What instructions of one warp or warpgroup have in common while they meet: a pointer of each lane.
struct Lanes {
  Meeting meeting;
  void* of[WARPGROUP];
};

struct Work;  // asynchronous
struct Thread;

struct Block {
  Index index, shape;  // shape: threads along each axis
  int slot, threads, first_of_cluster, blocks_of_cluster;
  uint8_t* shared;
  std::map<int, Meeting> barriers;
  std::vector<Lanes> warps, warpgroups;
  Meeting* cluster;
  // Of each piece: who wrote it and has not told the asynchronous proxy (TMA, wgmma) by a fence.
  std::vector<Thread*> unfenced{SHARED_BYTES / PIECE_BYTES};
};

using Group = std::vector<std::shared_ptr<Work>>;

// Asynchronous work of a thread: what was begun, and groups of it that it may wait for.
struct Queue {
  Group begun;
  std::deque<Group> groups;
};

struct Thread {
  ucontext_t context;
  Block* block;
  int index;
  bool done = false;
  uint64_t cluster_round = 0;
  Queue copies, stores, products;
  std::vector<Thread**> unfenced;  // pieces of its own in `Block::unfenced`
};

static std::vector<std::unique_ptr<Block>> blocks;
static std::vector<std::unique_ptr<Thread>> threads;
static Thread* current;
static ucontext_t scheduler;
static std::string failure;
static uint64_t stalled;  // looks at something not there yet, since anything happened
static bool late;         // whether asynchronous work is done when it must be, not when it begins
static std::function<void()> kernel_call;

inline void give_way() { swapcontext(&current->context, &scheduler); }

[[noreturn]] inline void fail(const std::string& why) {
  failure = "block " + std::to_string(current->block->index.x) + ", thread " + std::to_string(current->index) + ": " + why;
  for (;;) give_way();
}

inline void require(bool condition, const char* what) {
  if (!condition) fail(what);
}

template <class Ready>
void wait_until(Ready ready) {
  while (!ready()) {
    ++stalled;
    give_way();
  }
  stalled = 0;
}

// Waits for `count` threads; the last one does something first.
template <class Last>
void meet(Meeting& meeting, int count, Last last) {
  uint64_t round = meeting.round;
  if (++meeting.arrived == count) {
    last();
    meeting.arrived = 0;
    ++meeting.round;
    stalled = 0;
  } else {
    wait_until([&] { return meeting.round != round; });
  }
}
inline void meet(Meeting& meeting, int count) { meet(meeting, count, [] {}); }

inline int lane() { return current->index % WARP; }
inline Lanes& own_warp() { return current->block->warps[current->index / WARP]; }
inline Lanes& own_warpgroup() { return current->block->warpgroups[current->index / WARPGROUP]; }

// One lane's part of an instruction of many; the last one to come does all of them, given every lane's part.
template <class Part, class All>
void together(Lanes& lanes, int count, Part& part, All all) {
  lanes.of[current->index % count] = &part;
  meet(lanes.meeting, count, [&] { all(reinterpret_cast<Part**>(lanes.of)); });
}

struct Work {
  virtual ~Work() = default;
  virtual void run() = 0;
};

template <class Function>
struct Once : Work {
  Function function;
  bool done = false;
  explicit Once(Function function) : function(function) {}
  void run() override {
    if (!done) function();
    done = true;
  }
};

template <class Function>
std::shared_ptr<Work> work(Function function) {
  auto made = std::make_shared<Once<Function>>(function);
  if (!late) made->run();
  return made;
}

inline void commit(Queue& queue) {
  queue.groups.push_back(std::move(queue.begun));
  queue.begun.clear();
}

// Waits until at most `kept` groups are under way.
inline void wait_group(Queue& queue, int kept) {
  for (; (int)queue.groups.size() > kept; queue.groups.pop_front())
    for (auto& one : queue.groups.front()) one->run();
}

inline void enter() {
  kernel_call();
  commit(current->stores);
  wait_group(current->stores, 0);
  current->done = true;
  for (;;) give_way();
}

// Runs blocks [first, first + count) of a grid at the same time.
inline void run_blocks(int first, int count, Index grid, int cluster, Index shape, uint64_t order) {
  int size = shape.x * shape.y * shape.z;
  auto map = [](size_t bytes) {
    return (uint8_t*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  };
  uint8_t* shared = map(count * SHARED_BYTES);
  uint8_t* stacks = map((size_t)count * size * STACK_BYTES);
  std::vector<Meeting> clusters((count + cluster - 1) / cluster);
  for (int b = 0; b < count; ++b) {
    auto block = std::make_unique<Block>();
    int n = first + b;
    block->index = {n % grid.x, n / grid.x % grid.y, n / (grid.x * grid.y)};
    block->shape = shape;
    block->slot = b;
    block->threads = size;
    block->first_of_cluster = b / cluster * cluster;
    block->blocks_of_cluster = cluster;
    block->shared = shared + b * SHARED_BYTES;
    std::memset(block->shared, 0xFF, SHARED_BYTES);
    block->warps.resize((size + WARP - 1) / WARP);
    block->warpgroups.resize((size + WARPGROUP - 1) / WARPGROUP);
    block->cluster = &clusters[b / cluster];
    for (int t = 0; t < size; ++t) {
      auto thread = std::make_unique<Thread>();
      thread->block = block.get();
      thread->index = t;
      getcontext(&thread->context);
      thread->context.uc_stack.ss_sp = stacks + threads.size() * STACK_BYTES;
      thread->context.uc_stack.ss_size = STACK_BYTES;
      makecontext(&thread->context, enter, 0);
      threads.push_back(std::move(thread));
    }
    blocks.push_back(std::move(block));
  }
  std::vector<Thread*> left;
  for (auto& thread : threads) left.push_back(thread.get());
  for (stalled = 0; !left.empty() && failure.empty();) {
    // Order 0 is that of their numbers, 1 the reverse, others are shuffled anew each time
    for (size_t i = left.size(); order > 1 && i > 1; --i) {
      order = order * 6364136223846793005u + 1442695040888963407u;
      std::swap(left[i - 1], left[(order >> 33) % i]);
    }
    size_t n = left.size();
    for (size_t i = 0; i < n && failure.empty(); ++i) {
      current = left[order == 1 ? n - 1 - i : i];
      swapcontext(&scheduler, &current->context);
    }
    std::vector<Thread*> rest;
    for (Thread* thread : left)
      if (!thread->done) rest.push_back(thread);
    if (rest.size() != left.size()) stalled = 0;
    left = rest;
    if (failure.empty() && stalled > 8 * left.size() + 8)
      failure = "all " + std::to_string(left.size()) + " threads wait, such as thread " + std::to_string(left[0]->index);
  }
  threads.clear();
  blocks.clear();
  munmap(shared, count * SHARED_BYTES);
  munmap(stacks, (size_t)count * size * STACK_BYTES);
}

// Shared memory by 32-bit address, and back.
inline uint32_t __cvta_generic_to_shared(const void* pointer) {
  size_t offset = (const uint8_t*)pointer - current->block->shared;
  require(offset < SHARED_BYTES, "a pointer that is not to shared memory");
  return (uint32_t)current->block->slot << SHARED_BITS | (uint32_t)offset;
}
inline uint8_t* memory(uint32_t address) {
  size_t slot = address >> SHARED_BITS;
  require(slot < blocks.size(), "an address of no block's shared memory");
  return blocks[slot]->shared + address % SHARED_BYTES;
}

// Calls a function with every piece of some of the block's shared memory.
template <class Function>
void each_piece(const uint8_t* at, size_t bytes, Function function) {
  size_t offset = at - current->block->shared;
  require(offset + bytes <= SHARED_BYTES, "memory that is not the block's own shared one");
  for (size_t i = offset / PIECE_BYTES; i <= (offset + bytes - 1) / PIECE_BYTES; ++i)
    function(current->block->unfenced[i]);
}
inline void written(const uint8_t* at, size_t bytes) {
  each_piece(at, bytes, [](Thread*& piece) {
    piece = current;
    current->unfenced.push_back(&piece);
  });
}
inline void fence_async() {
  for (Thread** piece : current->unfenced)
    if (*piece == current) *piece = nullptr;
  current->unfenced.clear();
}
inline void require_fenced(const uint8_t* at, size_t bytes) {
  each_piece(at, bytes, [](Thread* piece) {
    require(!piece, "the asynchronous proxy reads what was written without a fence");
  });
}

// Global memory is the tensors that a kernel was given.
struct Span {
  const uint8_t* begin;
  size_t bytes;
};
static std::vector<Span> given;

inline void require_given(const void* pointer, size_t bytes) {
  auto at = (const uint8_t*)pointer;
  for (const Span& span : given)
    if (at >= span.begin && at + bytes <= span.begin + span.bytes) return;
  fail("memory of no tensor");
}

// A pointer of a kernel's to a tensor.
template <class T>
struct Tensor {
  T* raw;
  Tensor(T* raw) : raw(raw) {}
  T& operator[](int64_t i) const {
    require_given(raw + i, sizeof(T));
    return raw[i];
  }
  Tensor operator+(int64_t i) const { return raw + i; }
  template <class U>
  operator U*() const {
    require_given(raw, sizeof(U));
    return (U*)raw;
  }
};
