// What annulus_scale says: one line per row, as CSV, as JSON or for people. Columns that
// annulus_bench has too mean the same; the others are
//   scenario, scaling (weak, strong), series_tokens (per rank, or in all), tokens_per_rank,
//   messages compute_ms + imbalance_ms + bandwidth_ms + latency_ms = ms: TimeSplit
//   (bench/scale/simulator.h) exposed_comm_ms = bandwidth_ms + latency_ms waiting_ms, idle_ms:
//   RankTime, means over ranks; compute_ms + waiting_ms + idle_ms = ms efficiency,
//   efficiency_to_first: ScaleRow
// Pure functions.
#pragma once

#include <string>

#include "bench/scale/scenario.h"

namespace annulus {

std::string CsvHeader();
std::string ToCsv(const ScaleRow& row);
std::string ToJson(const ScaleRow& row);

std::string TextHeader(const Series& series);
std::string ToText(const ScaleRow& row);

}  // namespace annulus
