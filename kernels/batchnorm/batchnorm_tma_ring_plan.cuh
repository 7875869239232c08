// How the batchnorm kernels with a ring are laid out on a problem, and launched.
//
// A config is "<where chunks meet>_l<lanes>[_k<MiB>|_p<MiB>]": c16 or c8, a cluster of so many blocks, or
// grid; 4 or 8 vectors of 16 bytes a tile; what L2 is to keep of the stages that are read twice, pinned with
// p.
#pragma once

#include "kernels/batchnorm/batchnorm_tma_ring.cuh"

namespace kiln {

struct RingChoice {
  int cluster;      // blocks; 0: the grid
  int lanes;        // 4 or 8
  int l2_mib = -1;  // -1: a share of L2
  bool pinned = false;

  std::string str() const {
    std::string text = cluster ? std::string("c").append(std::to_string(cluster)) : std::string("grid");
    text.append("_l").append(std::to_string(lanes));
    if (l2_mib >= 0) text.append(pinned ? "_p" : "_k").append(std::to_string(l2_mib));
    return text;
  }
};

inline constexpr RingChoice kRingClusters[] = {{16, 8}, {16, 4}, {8, 8}, {8, 4}};
inline constexpr RingChoice kRingGrids[] = {{0, 8}, {0, 4}};
inline constexpr int kRingMib[] = {0, 16, 24, 32, 40, 48};

// `tensors`: of x's size that the pass reads.
inline RingTile make_ring_tile(const BatchnormProblem& p, const Device& device, int tensors,
                               const RingChoice& choice) {
  const int vectors = p.c / (16 / static_cast<int>(size_of(p.dtype)));
  RingTile ring{};
  BatchnormTile& t = ring.rows;
  t.rows = static_cast<int>(p.per_channel());
  t.channels = p.c;
  t.lanes = choice.lanes;
  t.tiles = ceil_div(vectors, t.lanes);
  t.block_rows = kRingThreads / t.lanes;
  const int most = std::min(std::max(1, device.multiprocessors / t.tiles), ceil_div(t.rows, t.block_rows));
  t.chunks = choice.cluster ? choice.cluster : most;
  ring.lane_bits = t.lanes == 8 ? 3 : 2;
  ring.row_bits = 8 - ring.lane_bits;
  ring.chunk_rows = t.rows / t.chunks;
  ring.longer_chunks = t.rows % t.chunks;
  const int chunk_rows = ceil_div(t.rows, t.chunks);
  const int stages = ceil_div(chunk_rows, t.block_rows * (4 / tensors));
  ring.stage_rows = ceil_div(chunk_rows, stages);
  const int room = (static_cast<int>(device.smem_per_block) - kRingSharedBytes) / kRingSlotBytes;
  ring.slots = std::min(stages, std::min(room, kRingSlots));
  const double l2 =
      choice.l2_mib >= 0 ? choice.l2_mib * 1048576.0 : 0.6 * static_cast<double>(device.l2_bytes);
  const double stage_bytes = 16.0 * tensors * ring.stage_rows * t.lanes * t.blocks();
  ring.l2_stages = std::min(stages - ring.slots, static_cast<int>(l2 / stage_bytes));
  ring.pinned = choice.pinned;
  return ring;
}

inline int ring_smem_bytes(const RingTile& ring) { return kRingSharedBytes + ring.slots * kRingSlotBytes; }

// Whether the clusters hold the tensor, on most multiprocessors or with little for each.
inline bool ring_fits_clusters(const BatchnormProblem& p, const Device& device, int tensors,
                               const RingChoice& choice) {
  const RingTile ring = make_ring_tile(p, device, tensors, choice);
  const int chunk_rows = ceil_div(ring.rows.rows, ring.rows.chunks);
  const int blocks = static_cast<int>(ring.rows.blocks());
  return ring.slots * ring.stage_rows >= chunk_rows && blocks <= device.multiprocessors &&
         (10 * blocks >= 7 * device.multiprocessors || ring.slots <= 2);
}

// Part of the multiprocessors' slots that holds channels where the grid meets: the last tile may be narrow.
inline double ring_grid_share(const BatchnormProblem& p, const Device& device, int tensors,
                              const RingChoice& choice) {
  const BatchnormTile t = make_ring_tile(p, device, tensors, choice).rows;
  if (t.tiles > device.multiprocessors) return 0.0;  // not all resident
  const double tile = t.lanes * 16.0 / static_cast<double>(size_of(p.dtype));
  return p.c / (t.tiles * tile) * t.blocks() / device.multiprocessors;
}

inline RingChoice ring_grid_choice(const BatchnormProblem& p, const Device& device, int tensors) {
  const bool narrow = ring_grid_share(p, device, tensors, kRingGrids[1]) >
                      1.02 * ring_grid_share(p, device, tensors, kRingGrids[0]);
  return kRingGrids[narrow ? 1 : 0];
}

inline std::vector<std::string> ring_configs(const BatchnormProblem& p, const Device& device, int tensors) {
  std::vector<std::string> configs;
  for (const RingChoice& choice : kRingClusters) {
    if (ring_fits_clusters(p, device, tensors, choice)) configs.push_back(choice.str());
  }
  RingChoice grid = ring_grid_choice(p, device, tensors);
  const RingTile ring = make_ring_tile(p, device, tensors, grid);
  configs.push_back(grid.str());
  if (ring.slots * ring.stage_rows >= ceil_div(ring.rows.rows, ring.rows.chunks)) return configs;
  for (const int mib : kRingMib) {
    grid.l2_mib = mib;
    configs.push_back(grid.str());
  }
  grid.pinned = true;
  for (const int mib : {16, 24, 32}) {
    grid.l2_mib = mib;
    configs.push_back(grid.str());
  }
  return configs;
}

inline RingChoice parse_ring_choice(std::string_view config) {
  for (const RingChoice* known : {&kRingClusters[0], &kRingClusters[1], &kRingClusters[2], &kRingClusters[3],
                                  &kRingGrids[0], &kRingGrids[1]}) {
    RingChoice choice = *known;
    if (config == choice.str()) return choice;
    for (const int mib : kRingMib) {
      for (const bool pinned : {false, true}) {
        choice.l2_mib = mib;
        choice.pinned = pinned;
        if (config == choice.str()) return choice;
      }
    }
  }
  fail_usage("batchnorm: unknown config '" + std::string(config) +
             "' of tma_ring; known: (c16|c8|grid)_(l8|l4)[_(k|p)(0|16|24|32|40|48)]");
}

inline Support ring_supports(const BatchnormProblem& p, const Device& device) {
  const int vector = 16 / static_cast<int>(size_of(p.dtype));
  if (device.sm != 90) return Support::no("TMA as this kernel uses it needs compute capability 9.0");
  if (p.c % vector) return Support::no("channels must be a multiple of 16 bytes");
  if (batchnorm_is_smooth(p.act)) return Support::no("the activation must be none, relu or relu6");
  return Support::require(ceil_div(p.c / vector, kRingGrids[0].lanes) <= device.multiprocessors,
                          "channels must be at most 128 bytes a multiprocessor");
}

// Rows of 64 bytes at least, split evenly over the grid.
inline bool ring_preferred(const BatchnormProblem& p, const Device& device, int tensors) {
  if (p.c * size_of(p.dtype) < 64) return false;
  return ring_grid_share(p, device, tensors, ring_grid_choice(p, device, tensors)) >= 0.85;
}

// A stage's box of the matrix at `base`, [M,C].
inline CUtensorMap make_ring_map(const BatchnormProblem& p, const RingTile& ring, const void* base) {
  const int bytes = static_cast<int>(size_of(p.dtype));
  return make_dense_map({.base = base,
                         .element_bytes = bytes,
                         .sizes = {static_cast<uint64_t>(p.c), static_cast<uint64_t>(p.per_channel()), 1, 1},
                         .box = {static_cast<uint32_t>(ring.rows.lanes * 16 / bytes),
                                 static_cast<uint32_t>(ring.stage_rows), 1, 1}});
}

// The layout, and which of two kernels runs it: one whose chunks meet in clusters, one for the grid.
template <class Kernel>
struct RingLaunch {
  Kernel kernel;
  const char* name;
  RingTile ring;
  bool cluster;

  template <class... Args>
  void operator()(Stream stream, const Args&... args) const {
    cudaLaunchAttribute attribute = {};
    const cudaLaunchConfig_t launch = config(attribute, stream);
    enqueue(kernel, launch, args...);
  }

 private:
  template <class... Params, class... Args>
  void enqueue(void (*function)(Params...), const cudaLaunchConfig_t& launch, const Args&... args) const {
    check_cuda(cudaLaunchKernelEx(&launch, function, static_cast<Params>(args)...), name);
  }
  cudaLaunchConfig_t config(cudaLaunchAttribute& attribute, Stream stream) const {
    if (cluster) {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(ring.rows.chunks);
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    } else {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    cudaLaunchConfig_t launch = {};
    launch.gridDim = dim3(static_cast<unsigned>(ring.rows.chunks), static_cast<unsigned>(ring.rows.tiles));
    launch.blockDim = dim3(kRingBlock);
    launch.dynamicSmemBytes = static_cast<size_t>(ring_smem_bytes(ring));
    launch.stream = cuda_stream(stream);
    launch.attrs = &attribute;
    launch.numAttrs = 1;
    return launch;
  }
};

// `tensors`: of x's size that the pass reads. An empty config: the grid, whose barrier costs less than the
// blocks that clusters leave idle.
template <class Kernel>
RingLaunch<Kernel> make_ring_launch(const BatchnormProblem& p, const Device& device, int tensors,
                                    Kernel in_cluster, Kernel in_grid, const char* name,
                                    std::string_view config) {
  for (const Kernel kernel : {in_cluster, in_grid}) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(device.smem_per_block)),
               name);
  }
  check_cuda(cudaFuncSetAttribute(in_cluster, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
  const auto launch_of = [&](const RingChoice& choice) {
    return RingLaunch<Kernel>{choice.cluster ? in_cluster : in_grid, name,
                              make_ring_tile(p, device, tensors, choice), choice.cluster > 0};
  };
  return launch_of(config.empty() ? ring_grid_choice(p, device, tensors) : parse_ring_choice(config));
}

}  // namespace kiln
