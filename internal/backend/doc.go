// Package backend has the backends by name, what a network configuration asks of them,
// and which of them a node has, by probes of its kernel. It opens none of them, so that
// programs which only read or judge a configuration do not link the engine. Package
// dataplane opens them.
package backend
