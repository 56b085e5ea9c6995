// Package report is what a session of the laboratory found out and how it is
// shown: as JSON, as Markdown tables, as plots, and against the marks that
// twill has to reach. It measures nothing.
//
//	report   a session: where, when, how, and its wires
//	wire     how packets cross between the hosts; has paths and runs
//	run      one load on one path in one round, with its figures
//	figure   a value of a metric
//	ratio    of two paths' figures, taken round by round, so that what slows
//	         the machine down for a while falls on both
//
// Names of wires, paths and loads are those that package bench gives them.
package report
