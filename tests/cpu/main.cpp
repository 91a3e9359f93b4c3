// Runs these tests on every instruction set that was built and that this processor has. An instruction set is
// chosen once a process, so each gets a process of its own, forked before the first OpenMP thread starts.
#include <sys/wait.h>
#include <unistd.h>

#include <sstream>

#include "check.h"

int main() {
  std::istringstream names(hsta::runnable_isas());
  hsta::test_memory();
  int failed = 0;
  for (std::string isa; names >> isa;) {
    std::printf("%s\n", isa.c_str());
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      setenv("HSTA_CPU_ISA", isa.c_str(), 1);
      hsta::test_elements();
      hsta::test_space_time_attention();
      hsta::test_cross_modal_attention();
      hsta::test_add_layer_norm();
      hsta::test_bias_gelu();
      hsta::test_quantized_rows();
      hsta::test_packed_product();
      std::exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    failed += status != 0;
  }
  std::printf(failed ? "%d instruction sets failed\n" : "all passed\n", failed);
  return failed != 0;
}
