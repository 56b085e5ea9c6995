// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// What the programs share with twilld. The maps are pinned: programs are replaced
// around them.

// A subnet, as a node of the longest-prefix-match table. IPv4 addresses are mapped into
// IPv6 (RFC 4291 §2.5.5.2), so that one table serves both.
struct subnet_key {
	__u32 prefix_len; // in bits, of the 128
	struct in6_addr addr;
};

enum subnet_kind {
	SUBNET_OWN = 1,    // of this node's pods
	SUBNET_USER = 2,   // of a peer that decapsulates in user space
	SUBNET_KERNEL = 3, // of a peer that decapsulates in the kernel
};

// What is known about a subnet.
struct subnet {
	enum subnet_kind kind;
	__be32 endpoint;    // of the peer on the underlay
	__be16 source_port; // to send from; 0: by the flow's hash
	__u16 mtu;          // of the largest packet to encapsulate; 0: what fits the path
};

// Traffic with a peer. One per CPU, and only that CPU writes it.
struct traffic {
	__u64 tx_packets; // segments of super-packets count
	__u64 tx_bytes;   // of inner packets
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 tx_dropped; // the kernel had no memory to encapsulate them
	__u64 rx_dropped; // or to decapsulate them
};

// What the last look-ups for a pair of inner addresses found: that the endpoint's datagrams
// may carry such packets. One table per CPU, and only that CPU uses it.
struct admission {
	struct in6_addr src, dst;
	__be32 endpoint;
	__u32 generation; // of the subnets
};

#define ADMISSIONS 256 // a power of two

#define MAX_SOURCE_PORTS 64

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 17);
	__type(key, struct subnet_key);
	__type(value, struct subnet);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} subnets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 16);
	__type(key, __be32); // subnet.endpoint
	__type(value, struct traffic);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ADMISSIONS);
	__type(key, __u32);
	__type(value, struct admission);
} admissions SEC(".maps");

// Incremented whenever the subnets have changed. No admission has the generation 0.
volatile __u32 generation = 1;

static __always_inline struct subnet *find_subnet(const struct in6_addr *addr)
{
	struct subnet_key key = {.prefix_len = 128, .addr = *addr};

	return bpf_map_lookup_elem(&subnets, &key);
}
