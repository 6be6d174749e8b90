// The lines of a result: CSV and JSON say the same, in the same order.
#include "bench/report/columns.h"

#include <cmath>

#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("columns as CSV and as JSON", "[columns]") {
  const Columns columns = {{"text", std::string("a,\"b\"")},
                           {"plain", std::string("ring")},
                           {"count", int64_t{1} << 40},
                           {"ratio", 0.25},
                           {"yes", true},
                           {"unknown", {}}};
  CHECK(columns.CsvHeader() == "text,plain,count,ratio,yes,unknown\n");
  CHECK(columns.CsvLine() == "\"a,\"\"b\"\"\",ring,1099511627776,0.25,true,\n");
  CHECK(columns.JsonLine() ==
        R"({"text":"a,\"b\"","plain":"ring","count":1099511627776,"ratio":0.25,"yes":true,)"
        R"("unknown":null})"
        "\n");
}

TEST_CASE("a number that is none is as one that was not measured", "[columns]") {
  const Columns columns = {{"a", std::nan("")}, {"b", HUGE_VAL}, {"c", 1.5}};
  CHECK(columns.CsvLine() == ",,1.5\n");
  CHECK(columns.JsonLine() == "{\"a\":null,\"b\":null,\"c\":1.5}\n");
}

}  // namespace
}  // namespace annulus
