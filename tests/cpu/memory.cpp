// Which outputs are asked into huge pages.
#include "../../csrc/cpu/memory.h"

#include <sstream>

#include "check.h"

namespace hsta {

void test_memory() {
  constexpr int64_t kMega = 1 << 20;
  struct Case {
    const char* buddyinfo;
    int64_t bytes;
    bool expected;
  };
  // Blocks of 2^9 and 2^10 pages hold one and two huge pages of 2 MB.
  const char* plenty =
      "Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      0      0\n"
      "Node 0, zone   Normal   1719   1041      2  38048   5273   7620   4512   2139    560     20     40\n";
  const char* scattered =
      "Node 0, zone   Normal 99999  99999  99999  99999  99999  99999  99999  99999  99999      0      0\n";
  const char* one_node_full =
      "Node 0, zone   Normal      0      0      0      0      0      0      0      0      0      0   1000\n"
      "Node 1, zone   Normal    500      0      0      0      0      0      0      0      0      1      0\n";
  for (const Case& c :
       {Case{plenty, 100 * kMega, true}, Case{plenty, 101 * kMega, false}, Case{scattered, 40 * kMega, false},
        Case{one_node_full, 40 * kMega, false}, Case{"", 40 * kMega, false}}) {
    std::istringstream buddyinfo(c.buddyinfo);
    if (huge_pages_to_spare(buddyinfo, c.bytes) == c.expected) continue;
    std::fprintf(stderr, "huge pages for %lld bytes: expected %d with\n%s\n", (long long)c.bytes, c.expected,
                 c.buddyinfo);
    std::exit(1);
  }
}

}  // namespace hsta
