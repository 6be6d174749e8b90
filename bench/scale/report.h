// What annulus_scale says of a row: its columns, for CSV and JSON, and a line for people. Columns
// that annulus_bench has too mean the same. Of the others
//   series_tokens     of the series: per rank or in all, as `scaling` (weak, strong) says
//   compute_ms + imbalance_ms + bandwidth_ms + latency_ms = ms (TimeSplit, bench/scale/simulator.h)
//   work_ms + overhead_ms = compute_ms
//   bandwidth_ms + latency_ms = exposed_comm_ms
//   waiting_ms, idle_ms are means over ranks (RankTime); compute_ms + waiting_ms + idle_ms = ms
//   efficiency, efficiency_to_first are ScaleRow's
// Pure functions.
#pragma once

#include <string>

#include "bench/report/columns.h"
#include "bench/scale/scenario.h"

namespace annulus {

Columns ToColumns(const ScaleRow& row);

std::string TextHeader(const Series& series);
std::string ToText(const ScaleRow& row);

}  // namespace annulus
