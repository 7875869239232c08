#include "bench/layer_rows.h"

#include <cstdio>
#include <regex>
#include <set>

#include "kernels/common/error.h"
#include "kernels/common/impl_choice.h"
#include "kernels/common/tune_cache.h"

namespace kiln {
namespace {

constexpr double kCpuNaiveFlops = 1e9;  // cpu_naive has no row beyond 0.5 GMAC

// Google Benchmark's filter, applied before anything is prepared: a regular expression, '-' in front negates.
class RowFilter {
 public:
  explicit RowFilter(const std::string& text)
      : negated_(text.rfind('-', 0) == 0),
        pattern_(compiled(text == "all" ? "."
                          : negated_    ? text.substr(1)
                                        : text)) {}
  bool keeps(const std::string& name) const { return std::regex_search(name, pattern_) != negated_; }

 private:
  static std::regex compiled(const std::string& pattern) {
    try {
      return std::regex(pattern);
    } catch (const std::regex_error& error) {
      fail_usage("--benchmark_filter '" + pattern + "' is no regular expression: " + error.what());
    }
  }

  bool negated_;
  std::regex pattern_;
};

// Without a GPU the vendor shapes are run at batch sizes that a CPU is asked for.
std::vector<NamedProblem> problems_for(const LayerOptions& options, const Device& device) {
  if (!options.problems.empty()) return options.problems;
  std::vector<NamedProblem> list = suite_problems(options.suite);
  if (device.is_cuda() || options.suite != Suite::kPeers) return list;
  std::vector<NamedProblem> scaled;
  for (const NamedProblem& p : list) {
    for (const int n : {1, 32, 128}) scaled.push_back({p.label, p.op, with_batch(p.text, n), p.passes});
  }
  return scaled;
}

// Peers, then the naive kernel, then the others best first.
std::vector<std::pair<std::string, bool>> ordered_impls(const PassInfo& pass, const AnyProblem& problem,
                                                        const Device& device, const RowFilter& filter,
                                                        const std::string& group, PlanRanking& ranking) {
  std::vector<std::pair<std::string, bool>> peers, naive, own;
  for (const ImplInfo& impl : pass.impls(device.kind)) {
    if (!pass.supports(problem, device, impl.name)) continue;
    if (impl.peer) {
      // Asking a peer for its choices takes seconds: not for rows that will be dropped.
      if (!filter.keeps(group + "/" + impl.name + ":plan0")) continue;
      for (const std::string& choice : peer_choices(pass, problem, device, impl.name, ranking))
        peers.emplace_back(choice, true);
    } else if (impl.name == "naive" || impl.name == "cpu_naive") {
      if (device.is_cuda() || pass.flops(problem) < kCpuNaiveFlops) naive.emplace_back(impl.name, false);
    } else {
      own.emplace_back(impl.name, false);
    }
  }
  peers.insert(peers.end(), naive.begin(), naive.end());
  peers.insert(peers.end(), own.begin(), own.end());
  return peers;
}

// What the cache holds for a problem if it is a config, whose time a bare name does not show; else "".
std::string tuned_config(const TuneCache& cache, const PassInfo& pass, const AnyProblem& problem,
                         const Device& device) {
  const TunedChoice* choice =
      cache.find(device.name, tuning_key(pass.op, pass.pass, problem.text, problem.dtype));
  if (!choice || choice->impl.find(':') == std::string::npos) return "";
  return choice->signature == tuning_signature(pass.choices(problem, device)) ? choice->impl : "";
}

std::vector<std::pair<std::string, bool>> wished_impls(const PassInfo& pass, const AnyProblem& problem,
                                                       const std::vector<std::string>& wishes,
                                                       const Device& device) {
  std::vector<std::pair<std::string, bool>> list;
  for (const bool peer : {true, false}) {
    for (const std::string& wish : wishes) {
      for (const ImplInfo& impl : pass.impls(device.kind)) {
        if (impl.name != wish.substr(0, wish.find(':')) || impl.peer != peer) continue;
        const Support support = pass.supports(problem, device, impl.name);
        if (support) {
          list.emplace_back(wish, peer);
        } else {
          std::fprintf(stderr, "no row for %s %s %s: %s\n", pass.id().c_str(), problem.text.c_str(),
                       wish.c_str(), support.rule());
        }
      }
    }
  }
  return list;
}

}  // namespace

std::string LayerRow::group() const { return pass->row_prefix() + "/" + problem + "/" + name_of(dtype); }

std::vector<LayerRow> layer_rows(const LayerOptions& options, const Device& device, PlanRanking& ranking) {
  std::vector<DType> dtypes = options.dtypes;
  if (dtypes.empty()) dtypes.push_back(device.is_cuda() ? DType::kBF16 : DType::kF32);
  const RowFilter filter(options.filter);
  const bool wishes = !options.impl.str().empty();
  const TuneCache tuned = options.tune_cache.empty() ? TuneCache() : TuneCache::load(options.tune_cache);
  std::vector<LayerRow> rows;
  std::set<std::string> seen;
  int index = 0;
  for (const NamedProblem& named : problems_for(options, device)) {
    if (index++ % options.shards != options.shard) continue;
    for (const PassInfo& pass : all_passes()) {
      if (pass.op != named.op || !named.has_pass(pass.pass)) continue;
      for (const DType dtype : dtypes) {
        AnyProblem problem;
        try {
          problem = pass.parse(named.text, dtype);
        } catch (const Error&) {
          if (!options.problems.empty()) throw;
          continue;  // grad_norm has no bf16
        }
        LayerRow row{&pass, named.label, problem.text, dtype, "", false};
        auto impls = wishes ? wished_impls(pass, problem,
                                           options.impl.alternatives(pass.op, pass.pass, device.kind), device)
                            : ordered_impls(pass, problem, device, filter, row.group(), ranking);
        const std::string config = wishes ? "" : tuned_config(tuned, pass, problem, device);
        if (!config.empty()) impls.emplace_back(config, false);
        for (const auto& [impl, peer] : impls) {
          row.impl = impl;
          row.peer = peer;
          if (filter.keeps(row.name()) && seen.insert(row.name()).second) rows.push_back(row);
        }
      }
    }
  }
  return rows;
}

}  // namespace kiln
