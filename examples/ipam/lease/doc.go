// Package lease decides which subnets and addresses are free, and remembers durably who holds which.
//
// A Store is a directory with a log in it: one line of JSON per change, each with a checksum, flushed to disk before
// the change is answered. Changes that arrive together share one flush. What is held is computed from the log and
// from nothing else, so a process that is killed at any moment, and started again, knows exactly what it had
// answered. Several processes may use one directory, an old and a new one during a reload for instance: each takes
// the lock for as long as it reads and writes, and first reads what the others wrote.
//
// What is held is keyed by its owner: asking again for the same owner gives what it has. The format of the log is
// described in the README beside this folder, for programs that want to read it by themselves.
package lease
