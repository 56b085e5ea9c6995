// Package e2e runs the real binaries in network namespaces. Its tests read as
// specifications: each is one behaviour that a user would notice, and its name
// is the sentence.
//
// The topology is that of internal/lab/netlab, with a twilld on each host:
//
//	  pod-a              host a                       host b              pod-b
//	┌───────┐   ┌────────────────────┐       ┌────────────────────┐   ┌───────┐
//	│ eth0 ─┼───┼─ cni0 … flannel0 … eth0 ───┼ eth0 … flannel0 … cni0 ─┼── eth0 │
//	└───────┘   └────────────────────┘       └────────────────────┘   └───────┘
//	10.5.1.2/24       172.31.9.11       wire       172.31.9.12        10.5.2.2/24
//
// The tests need root and fail without it. They run concurrently, several per
// processor, since most of their time is spent waiting; only those that inspect the
// whole process do not. No outcome depends on how fast the machine is or in which
// order it schedules: tests wait for what must happen, and only something that never
// happens reaches testkit.Patience.
package e2e
