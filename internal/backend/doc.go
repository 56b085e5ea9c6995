// Package backend names the backends, parses what a network configuration requests of
// them, and chooses those that a node uses, by probing its kernel. It opens none of them,
// so that programs that only read or check a configuration do not link the engine.
// Package dataplane opens them.
package backend
