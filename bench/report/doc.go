// Package report holds the results of a session of the laboratory and presents
// them: as JSON, as Markdown tables, as plots, and against the targets that
// twill has to meet. It measures nothing.
//
//	report   a session: where, when, how, and its wires
//	wire     how packets cross between the hosts; has paths and runs
//	run      one load on one path in one round, with its figures
//	figure   a value of a metric
//	ratio    of two paths' figures, taken round by round, so that a temporary
//	         slowdown of the machine affects both
//
// Package bench defines the names of wires, paths and loads.
package report
