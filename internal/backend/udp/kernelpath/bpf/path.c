// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The udp backend's wire, carried by the kernel:
//
//        egress of the TUN device                 ingress of the underlay
//   inner packet ─► peer? fits? ─► +28 bytes   datagram ─► ours? from whom? ─► -28 bytes
//                        │             │                        │                 │
//                        ▼             ▼                        ▼                 ▼
//                    user space    neighbour                 socket      veth pair, which does GRO
//
// A program takes a packet only if it can do with it exactly what the engine in user
// space would do. It leaves every other packet as it is: the engine carries it, answers
// it with an ICMP error, or drops it and counts the reason.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "header.h"
#include "maps.h"

// PASS leaves the packet to the programs behind this one, and to the kernel: in a
// chain of TCX programs it is TCX_NEXT, in a clsact filter "no match".
#define PASS TC_ACT_UNSPEC

// Set when the programs are loaded.
const volatile __u32 uplink;              // index of the underlay interface
const volatile __be32 local;              // this node's address there
const volatile __be16 port;               // the network's UDP port
const volatile __be16 source_ports[MAX_SOURCE_PORTS];
const volatile __u32 source_port_count;   // at least 1
const volatile __u32 feed;                // index of the end of the pair that is written to
const volatile __be16 feed_header[ETH_ALEN]; // destination and source address on the pair
// BPF_F_ADJ_ROOM_DECAP_L3_IPV6 where the kernel has it (Linux 6.3), otherwise 0.
const volatile __u64 decap_ipv6;

// AF_INET of sys/socket.h.
#define FAMILY_IPV4 2

// outer is what precedes the inner packet on an Ethernet.
struct outer {
	__u16 align; // the IP header, as NET_IP_ALIGN does; not part of the packet
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
};

// OVERHEAD is what the datagram adds to an inner packet, in bytes.
#define OVERHEAD (sizeof(struct iphdr) + sizeof(struct udphdr))
#define OUTER_LEN (sizeof(struct ethhdr) + OVERHEAD)

#define DEFAULT_TTL 64 // IPDEFTTL of net/ip.h

// cut describes the segments of a super-packet.
struct cut {
	__u32 count;
	__u32 headers; // of each, in bytes
};

// describe_cut finds out the segments of the inner packet at the offset; one if it is no
// super-packet. It returns 0 if that is not TCP, directly behind the IP header. The kernel's
// own count of segments (gso_segs) is missing after a program has changed the packet.
//
// UDP super-packets are left to user space. If one crosses a wire whole (veth), it keeps
// SKB_GSO_UDP_TUNNEL when the outer header is removed, so that the kernel takes its own
// UDP header for that of a tunnel when it cuts it (udp4_ufo_fragment).
static __always_inline int describe_cut(struct __sk_buff *skb, __u32 offset, const struct inner *in, struct cut *cut)
{
	struct tcphdr tcp;

	cut->count = 1;
	cut->headers = 0;
	if (!skb->gso_size)
		return 1;
	if (in->protocol != IPPROTO_TCP || bpf_skb_load_bytes(skb, offset + in->header_len, &tcp, sizeof(tcp)))
		return 0;
	cut->headers = in->header_len + 4 * tcp.doff;
	if (cut->headers >= in->len)
		return 0;
	cut->count = (in->len - cut->headers + skb->gso_size - 1) / skb->gso_size;
	return 1;
}

// bytes_of returns the size of all segments.
static __always_inline __u32 bytes_of(const struct inner *in, const struct cut *cut)
{
	return in->len + (cut->count - 1) * cut->headers;
}

// source_port returns the port to send from: flows spread over the engine's ports,
// so that the kernel finds a socket for an ICMP error that a datagram causes.
static __always_inline __be16 source_port(struct __sk_buff *skb, const struct subnet *to)
{
	__u32 i = bpf_get_hash_recalc(skb) % source_port_count;

	if (to->source_port || i >= MAX_SOURCE_PORTS)
		return to->source_port ? to->source_port : port;
	return source_ports[i];
}

enum reach { UNREACHABLE, UNRESOLVED, RESOLVED };

// find_route finds the next hop to the endpoint, and whether its link-layer address is
// known. The endpoint is unreachable for a packet of size bytes too if its datagram does not
// fit the path, as far as the kernel knows it.
static __always_inline enum reach find_route(struct __sk_buff *skb, __be32 endpoint, __u32 size, struct bpf_fib_lookup *route)
{
	route->family = FAMILY_IPV4;
	route->l4_protocol = IPPROTO_UDP;
	route->tot_len = size + OVERHEAD;
	route->ifindex = uplink;
	route->ipv4_src = local;
	route->ipv4_dst = endpoint;
	switch (bpf_fib_lookup(skb, route, sizeof(*route), BPF_FIB_LOOKUP_OUTPUT)) {
	case BPF_FIB_LKUP_RET_SUCCESS: // the gateway may be IPv6 (RFC 5549)
		return route->family == FAMILY_IPV4 ? RESOLVED : UNREACHABLE;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return UNRESOLVED;
	}
	return UNREACHABLE;
}

// encapsulate handles what the host sends through the TUN device.
SEC("tc")
int encapsulate(struct __sk_buff *skb)
{
	struct bpf_fib_lookup route = {};
	struct bpf_redir_neigh next = {};
	struct outer o = {};
	struct inner in;
	struct cut cut;

	if (!read_inner(skb, 0, &in) || in.len != skb->len || in.len + OVERHEAD > MAX_IPV4_LEN)
		return PASS;
	struct subnet *to = find_subnet(&in.dst);
	if (!to || to->kind != SUBNET_KERNEL)
		return PASS;
	struct traffic *count = bpf_map_lookup_elem(&peers, &to->endpoint);
	if (!count)
		return PASS;
	if (!describe_cut(skb, 0, &in, &cut))
		return PASS;
	__u32 size = skb->gso_size ? cut.headers + skb->gso_size : in.len;
	if (to->mtu && size > to->mtu)
		return PASS;
	enum reach reach = find_route(skb, to->endpoint, size, &route);
	if (reach == UNREACHABLE)
		return PASS;

	o.eth.h_proto = bpf_htons(ETH_P_IP);
	o.ip.version = 4;
	o.ip.ihl = sizeof(o.ip) / 4;
	o.ip.tos = in.ecn; // RFC 6040 §4.1, normal mode; the DSCP stays inside
	o.ip.tot_len = bpf_htons(in.len + OVERHEAD);
	o.ip.frag_off = in.dont_fragment ? bpf_htons(IP_DF) : 0;
	o.ip.id = in.dont_fragment ? 0 : bpf_get_prandom_u32(); // RFC 6864 §4
	o.ip.ttl = DEFAULT_TTL;
	o.ip.protocol = IPPROTO_UDP;
	o.ip.saddr = local;
	o.ip.daddr = to->endpoint;
	o.ip.check = ~sum_header(&o.ip);
	o.udp.source = source_port(skb, to);
	o.udp.dest = port;
	o.udp.len = bpf_htons(in.len + sizeof(o.udp)); // without a checksum: RFC 768 allows it over IPv4

	if (bpf_skb_change_head(skb, sizeof(o.eth), 0))
		return PASS;
	if (bpf_skb_adjust_room(skb, OVERHEAD, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP) ||
	    bpf_skb_store_bytes(skb, 0, &o.eth, OUTER_LEN, 0)) {
		count->tx_dropped++;
		return TC_ACT_SHOT;
	}
	count->tx_packets += cut.count;
	count->tx_bytes += bytes_of(&in, &cut);
	// Without a next hop the helper looks up the route itself. It must where the packet
	// has to wait for the neighbour: otherwise it keeps its inner route, along which it is
	// sent when the neighbour answers (neigh_update_process_arp_queue).
	if (reach == UNRESOLVED)
		return bpf_redirect_neigh(route.ifindex, NULL, 0, 0);
	next.nh_family = FAMILY_IPV4;
	next.ipv4_nh = route.ipv4_dst;
	return bpf_redirect_neigh(route.ifindex, &next, sizeof(next), 0);
}

// is_datagram reports whether o starts a whole datagram of skb, to this node's port, from
// a peer that encapsulates in the kernel: only those leave out the checksum.
static __always_inline int is_datagram(struct __sk_buff *skb, const struct outer *o)
{
	__u32 len = bpf_ntohs(o->ip.tot_len);

	return o->ip.version == 4 && o->ip.ihl == sizeof(o->ip) / 4 && o->ip.protocol == IPPROTO_UDP &&
	       o->udp.dest == port && o->ip.daddr == local && !o->udp.check &&
	       !(o->ip.frag_off & bpf_htons(IP_MF | IP_OFFSET)) &&
	       len + sizeof(o->eth) <= skb->len && len == bpf_ntohs(o->udp.len) + sizeof(o->ip) &&
	       sum_header(&o->ip) == 0xffff;
}

static __always_inline int same_addr(const struct in6_addr *a, const struct in6_addr *b)
{
	const __u32 *x = a->in6_u.u6_addr32, *y = b->in6_u.u6_addr32;

	return x[3] == y[3] && x[2] == y[2] && x[1] == y[1] && x[0] == y[0];
}

static __always_inline __u32 admission_slot(const struct inner *in)
{
	__u32 hash = in->src.in6_u.u6_addr32[3] ^ in->src.in6_u.u6_addr32[1] ^ in->dst.in6_u.u6_addr32[3];

	hash ^= hash >> 16;
	return (hash ^ hash >> 8) % ADMISSIONS;
}

// is_admitted reports whether the endpoint is the peer that holds the inner source, and
// the inner destination is ours. The answer is the same for all packets of a flow, however
// many subnets there are, so that it is kept until one changes.
static __always_inline int is_admitted(const struct inner *in, __be32 endpoint)
{
	__u32 slot = admission_slot(in), now = generation;
	struct admission *known = bpf_map_lookup_elem(&admissions, &slot);

	if (known && known->generation == now && known->endpoint == endpoint &&
	    same_addr(&known->src, &in->src) && same_addr(&known->dst, &in->dst))
		return 1;
	struct subnet *from = find_subnet(&in->src);
	if (!from || from->kind != SUBNET_KERNEL || from->endpoint != endpoint)
		return 0;
	struct subnet *to = find_subnet(&in->dst);
	if (!to || to->kind != SUBNET_OWN)
		return 0;
	if (known) {
		known->src = in->src;
		known->dst = in->dst;
		known->endpoint = endpoint;
		known->generation = now; // read before the subnets
	}
	return 1;
}

// decapsulate handles what arrives on the underlay.
SEC("tc")
int decapsulate(struct __sk_buff *skb)
{
	struct inner in;
	struct outer o;
	struct cut cut;

	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return PASS;
	if (bpf_skb_load_bytes(skb, 0, &o.eth, OUTER_LEN) || !is_datagram(skb, &o))
		return PASS;
	if (!read_inner(skb, OUTER_LEN, &in) || in.len + sizeof(o.udp) != bpf_ntohs(o.udp.len))
		return PASS;
	// A super-packet cannot change its protocol before Linux 6.3.
	if (!describe_cut(skb, OUTER_LEN, &in, &cut) || (skb->gso_size && in.version == 6 && !decap_ipv6))
		return PASS;
	if (!is_admitted(&in, o.ip.saddr))
		return PASS;
	int ecn = merge_ecn(in.ecn, o.ip.tos & ECN_MASK);
	if (ecn < 0)
		return PASS;
	struct traffic *count = bpf_map_lookup_elem(&peers, &o.ip.saddr);
	if (!count)
		return PASS;

	__be16 *header = (void *)&o.eth;
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		header[i] = feed_header[i];
	o.eth.h_proto = in.version == 6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	if (bpf_skb_adjust_room(skb, -(int)OVERHEAD, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | (in.version == 6 ? decap_ipv6 : 0)) ||
	    bpf_skb_store_bytes(skb, 0, &o.eth, sizeof(o.eth), 0) ||
	    (ecn != in.ecn && write_ecn(skb, sizeof(o.eth), &in, ecn))) {
		count->rx_dropped++;
		return TC_ACT_SHOT;
	}
	count->rx_packets += cut.count;
	count->rx_bytes += bytes_of(&in, &cut);
	return bpf_redirect(feed, 0);
}

// bpf_fib_lookup is for programs under the GPL.
char _license[] SEC("license") = "GPL";
