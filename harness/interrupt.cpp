#include "harness/interrupt.h"

#include <csignal>

namespace kiln {
namespace {

volatile std::sig_atomic_t caught = 0;

void on_signal(int number) {
  caught = 1;
  std::signal(number, SIG_DFL);
}

}  // namespace

void catch_interrupt() { std::signal(SIGINT, on_signal); }

bool interrupted() { return caught != 0; }

}  // namespace kiln
