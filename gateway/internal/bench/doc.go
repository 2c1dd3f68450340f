// Package bench measures what the gateway itself costs: the real engine, pipeline, journal and supervisor, with
// extension programs that do nothing and a driver that does nothing. `make bench` prints a report of it, with the
// figures that are wanted and whether they held; the tests keep those that do not depend on the machine's speed.
package bench
