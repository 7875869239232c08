// bench_epoch --sweep: images a second at every batch size on the CPU and on the GPU, and where they cross.
#pragma once

#include <cstdio>
#include <map>
#include <string>

#include "bench/epoch_measure.h"

namespace kiln {

// One step at a time: `seconds` is of one call of predict(), or of one training step.
EpochResult measure_sweep_infer(EpochBench& bench, const EpochRow& row);
EpochResult measure_sweep_train(EpochBench& bench, const EpochRow& row);

// Images a second by batch, of one device; empty where it was not measured.
using RateByBatch = std::map<int, double>;

// "cuda is faster at every batch", "cpu is faster up to batch 4, cuda from batch 8 on", ...: the crossover is
// the batch from which on cuda stays faster. `without`: why one device has no figures.
std::string crossover_text(const RateByBatch& cpu, const RateByBatch& cuda, const std::string& without);

// Tables of all results by row name, and a line "crossover: ..." for each network and kind.
void print_sweep(std::FILE* out, const std::map<std::string, std::pair<EpochRow, EpochResult>>& results);

}  // namespace kiln
