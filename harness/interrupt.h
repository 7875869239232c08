// Ctrl-C: the first one asks the work in hand to stop at its next safe point, a second one ends the process.
#pragma once

namespace kiln {

constexpr int kInterruptedStatus = 130;  // the exit status of a program that SIGINT ended

void catch_interrupt();  // installs the handler
bool interrupted();

}  // namespace kiln
