// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Reading and writing IP headers.

// The field frag_off of struct iphdr, RFC 791 §3.1.
#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

#define MAX_IPV4_LEN 65535 // of a packet, in bytes: tot_len has 16 bits

// Codepoints of ECN, RFC 3168 §5.
#define ECN_MASK 3
#define ECN_NOT_ECT 0
#define ECN_ECT1 1
#define ECN_CE 3

// inner describes an inner packet.
struct inner {
	struct in6_addr src, dst; // IPv4 mapped into IPv6
	__u32 len;                // of the packet, as its header states it
	__u32 header_len;         // of the IP header
	__u8 version;
	__u8 protocol; // behind the IP header
	__u8 ecn;
	__u8 dont_fragment;
};

#define MAPPED_PREFIX bpf_htonl(0xffff) // third word of the prefix ::ffff:0:0/96

static __always_inline int is_mapped(const struct in6_addr *a)
{
	return !a->in6_u.u6_addr32[0] && !a->in6_u.u6_addr32[1] && a->in6_u.u6_addr32[2] == MAPPED_PREFIX;
}

static __always_inline void map_ipv4(struct in6_addr *to, __be32 addr)
{
	to->in6_u.u6_addr32[0] = 0;
	to->in6_u.u6_addr32[1] = 0;
	to->in6_u.u6_addr32[2] = MAPPED_PREFIX;
	to->in6_u.u6_addr32[3] = addr;
}

// read_inner reads the IP header at the offset. It returns 0 if there is none, or one that
// no pod may send.
static __always_inline int read_inner(struct __sk_buff *skb, __u32 offset, struct inner *in)
{
	struct ipv6hdr ip6;
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return 0;
	in->version = ip.version;
	switch (ip.version) {
	case 4:
		map_ipv4(&in->src, ip.saddr);
		map_ipv4(&in->dst, ip.daddr);
		in->len = bpf_ntohs(ip.tot_len);
		in->header_len = 4 * ip.ihl;
		in->protocol = ip.protocol;
		in->ecn = ip.tos & ECN_MASK;
		in->dont_fragment = !!(ip.frag_off & bpf_htons(IP_DF));
		return in->header_len >= sizeof(ip) && in->len >= in->header_len;
	case 6:
		if (bpf_skb_load_bytes(skb, offset, &ip6, sizeof(ip6)))
			return 0;
		in->src = ip6.saddr;
		in->dst = ip6.daddr;
		in->len = bpf_ntohs(ip6.payload_len) + sizeof(ip6);
		in->header_len = sizeof(ip6);
		in->protocol = ip6.nexthdr;
		in->ecn = ip6.flow_lbl[0] >> 4 & ECN_MASK; // the low bits of the traffic class
		in->dont_fragment = 1;                     // RFC 8200 §5: routers never do
		return !is_mapped(&in->src) && !is_mapped(&in->dst); // they would pass for IPv4
	}
	return 0;
}

// sum_header returns the one's complement sum of a header without options. It is 0xffff
// if the header has a correct checksum (RFC 1071).
static __always_inline __u16 sum_header(const struct iphdr *ip)
{
	const __u16 *word = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < sizeof(*ip) / sizeof(*word); i++)
		sum += word[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return sum + (sum >> 16);
}

// merge_ecn combines the fields of both headers as RFC 6040 §4.2, figure 4, says. It
// returns -1 for a packet that must be dropped.
static __always_inline int merge_ecn(__u8 inner, __u8 outer)
{
	if (inner == ECN_NOT_ECT)
		return outer == ECN_CE ? -1 : inner;
	if (inner == ECN_CE)
		return inner;
	return outer == ECN_CE || outer == ECN_ECT1 ? outer : inner;
}

// write_ecn replaces the ECN field of the IP header at the offset.
static __always_inline int write_ecn(struct __sk_buff *skb, __u32 offset, const struct inner *in, __u8 ecn)
{
	__be16 old, new;

	if (bpf_skb_load_bytes(skb, offset, &old, sizeof(old)))
		return -1;
	if (in->version == 6) {
		new = (old & ~bpf_htons(ECN_MASK << 4)) | bpf_htons(ecn << 4);
		return bpf_skb_store_bytes(skb, offset, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM);
	}
	// The sum over the packet stays: the checksum of the header compensates the change.
	new = (old & ~bpf_htons(ECN_MASK)) | bpf_htons(ecn);
	return bpf_skb_store_bytes(skb, offset, &new, sizeof(new), 0) ||
	       bpf_l3_csum_replace(skb, offset + offsetof(struct iphdr, check), old, new, sizeof(new));
}
