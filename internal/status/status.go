// Package status defines what a running twilld reports about itself: a JSON
// document, the unix socket that serves it, and the client.
//
// The document is for people and scripts that examine one node; the metrics are for
// monitoring over time and across nodes. Field names are stable: fields are added, not
// renamed.
package status

import (
	"cmp"
	"net/netip"
	"time"
)

// Document is the answer to GET /status. A part that the daemon does not have
// yet (for example while it waits for its lease) is absent, as is an empty
// list.
type Document struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Uptime  float64   `json:"uptime_seconds"`
	// Waiting is what keeps the daemon from being ready, or empty if it is ready.
	Waiting string `json:"waiting,omitempty"`
	// Stopping is set once the daemon has received SIGTERM or SIGINT.
	Stopping bool `json:"stopping,omitempty"`
	// WaitingReason is the kind of Waiting, for programs: a value of metrics.Wait.
	WaitingReason string `json:"waiting_reason,omitempty"`
	// Restart is the configuration change that needs a restart to take effect, or
	// empty if none is pending.
	Restart string `json:"restart_needed,omitempty"`

	// AddressConflict describes another host that has this one's public address, or is
	// empty if none was seen recently.
	AddressConflict string `json:"address_conflict,omitempty"`

	Network []netip.Prefix `json:"network,omitempty"`
	Backend string         `json:"backend,omitempty"` // as configured: "udp", "auto"
	// Backends are the backends that the node has for its peers, best first, and
	// BackendWhy is why these were chosen.
	Backends   []string `json:"backends,omitempty"`
	BackendWhy string   `json:"backend_why,omitempty"`

	Lease     *Lease     `json:"lease,omitempty"`
	Underlay  *Underlay  `json:"underlay,omitempty"`
	Rules     *Rules     `json:"rules,omitempty"`
	Dataplane *Dataplane `json:"dataplane,omitempty"`
	Shards    []Shard    `json:"shards,omitempty"`
	Drops     Drops      `json:"drops"`
	Source    Source     `json:"lease_source"`
	Settings  *Settings  `json:"settings,omitempty"`

	Privileges *Privileges `json:"privileges,omitempty"`
}

// Privileges are the privileges of the daemon's process and of the programs that it runs.
type Privileges struct {
	// Capabilities are the names of the capabilities that the process has or can give
	// itself, without "CAP_": "NET_ADMIN".
	Capabilities []string `json:"capabilities"`
	// NoNewPrivileges means that programs run by the process cannot gain privileges.
	NoNewPrivileges bool `json:"no_new_privileges"`
}

// Settings are the locations of the daemon's files and store, so that commands on
// the same host need no flags for them. File names are absolute. With a lease file
// the etcd fields are absent, and vice versa.
type Settings struct {
	SubnetFile string `json:"subnet_file"`
	LeaseFile  string `json:"lease_file,omitempty"`
	// Kubernetes is set if Kubernetes stores the leases.
	Kubernetes *Kubernetes `json:"kubernetes,omitempty"`
	Endpoints  []string    `json:"etcd_endpoints,omitempty"`
	Prefix     string      `json:"etcd_prefix,omitempty"`
	CAFile     string      `json:"etcd_cafile,omitempty"`
	CertFile   string      `json:"etcd_certfile,omitempty"`
	KeyFile    string      `json:"etcd_keyfile,omitempty"`
	// Login means that the daemon logs in to etcd with a password. Since it does not
	// disclose that, it reads etcd for the commands.
	Login bool `json:"etcd_login,omitempty"`
}

// Kubernetes holds the values of the flags of the same names, by which the daemon
// finds the nodes and the network configuration. With neither URL nor kubeconfig the
// daemon uses the API of the cluster in which it runs as a pod.
type Kubernetes struct {
	APIURL     string `json:"api_url,omitempty"`
	Kubeconfig string `json:"kubeconfig,omitempty"`
	Prefix     string `json:"annotation_prefix"`
	ConfigFile string `json:"net_config"`
}

// Lease is the lease that this node holds. Prefixes and addresses of a family
// that the node does not have are absent.
type Lease struct {
	Subnet     netip.Prefix `json:"subnet,omitzero"`
	IPv6Subnet netip.Prefix `json:"ipv6_subnet,omitzero"`
	PublicIP   netip.Addr   `json:"public_ip,omitzero"`
	PublicIPv6 netip.Addr   `json:"public_ipv6,omitzero"`
	Expiration time.Time    `json:"expiration,omitzero"`
}

// Subnets returns the subnets that l has, IPv4 first; none for nil.
func (l *Lease) Subnets() []netip.Prefix {
	if l == nil {
		return nil
	}
	return Valid(l.Subnet, l.IPv6Subnet)
}

// Underlay is the interface that reaches the other nodes.
type Underlay struct {
	Name string     `json:"name"`
	IPv4 netip.Addr `json:"ipv4,omitzero"`
	IPv6 netip.Addr `json:"ipv6,omitzero"`
	MTU  int        `json:"mtu"`
	Why  string     `json:"why"` // why this one was chosen
}

// Rules are the firewall rules that the daemon maintains for its network and
// lease, and their state.
type Rules struct {
	NFTables    bool      `json:"nftables"`     // written with nftables, not with iptables
	Masquerade  bool      `json:"masquerade"`   // --ip-masq
	RandomFully bool      `json:"random_fully"` // not --ip-masq-fully-random-disable
	Forward     bool      `json:"forward"`      // --iptables-forward-rules
	Written     int       `json:"written"`      // how often they differed from the wanted ones and were rewritten
	Checked     time.Time `json:"checked,omitzero"`
	Problem     string    `json:"problem,omitempty"` // why they are not as wanted; empty if they were when last checked
	Missing     []string  `json:"missing,omitempty"` // what is not guarded because the kernel or the tool does not support the rules for it
	// Unwritable lists interfaces to other hosts with names that rules cannot contain. If
	// there are any, forged sources are not detected.
	Unwritable []string `json:"unwritable,omitempty"`
}

// Dataplane is the part that the backend fills in. All of it may change while
// the daemon runs: the kernel can refuse an offload at any send.
type Dataplane struct {
	Devices     []Device  `json:"devices,omitempty"` // all that carry packets of pods, the TUN device last
	Port        uint16    `json:"port"`              // UDP port on the underlay
	SourceCheck string    `json:"source_check"`      // strict, inner, off
	Memory      string    `json:"memory,omitempty"`  // profile of the udp backend, small or normal, and why
	Offloads    []Offload `json:"offloads,omitempty"`
	Peers       []Peer    `json:"peers,omitempty"`
	// Unreached are the subnets of other nodes that no packets are sent to, in order.
	Unreached []Unreached `json:"unreached,omitempty"`
}

// Unreached is a subnet of another node to which no backend of this node leads.
type Unreached struct {
	Subnet   netip.Prefix `json:"subnet"`
	PublicIP netip.Addr   `json:"public_ip,omitzero"` // of the other node
	Why      string       `json:"why"`
}

// TUN returns the TUN device, or nil if there is none.
func (d *Dataplane) TUN() *Device {
	for i := range d.Devices {
		if k := d.Devices[i].Kind; k == KindOffload || k == KindPlain {
			return &d.Devices[i]
		}
	}
	return nil
}

// MTU returns the size in bytes of the largest inner packet that fits all devices; 0 if
// there are none.
func (d *Dataplane) MTU() int {
	mtu := 0
	for _, dev := range d.Devices {
		if mtu == 0 || dev.MTU < mtu {
			mtu = dev.MTU
		}
	}
	return mtu
}

// Kinds of device. The first two are TUN devices.
const (
	KindOffload = "offload" // virtio-net header, super-packets, many queues
	KindPlain   = "plain"   // one packet per read
	KindVXLAN   = "vxlan"   // the kernel's own
	KindHostGW  = "host-gw" // plain routes over the interface of the underlay
)

// Device is a device that carries packets of pods.
type Device struct {
	Name string `json:"name"`
	Kind string `json:"kind"` // one of the Kinds
	Why  string `json:"why"`  // why this kind: what was configured, what the kernel refused
	MTU  int    `json:"mtu"`  // largest inner packet, IP header included
}

// Offload is work that the kernel can do for the data plane. It can be switched off.
type Offload struct {
	Name    string `json:"name"`     // the flag that switches it, without the leading dashes: "udp-gso"
	Mode    string `json:"mode"`     // as configured: auto, on, off
	InForce bool   `json:"in_force"` // on every shard
	Why     string `json:"why"`      // "granted: TSO4 TSO6 USO4 USO6", "refused by the kernel: sendmsg: EIO, shard 1 of 4"
}

// Peer is another node, and the traffic to and from it.
type Peer struct {
	Subnets  []netip.Prefix `json:"subnets"`
	PublicIP netip.Addr     `json:"public_ip"` // where its packets go
	// Backend is the backend that carries packets to it: vxlan, udp, host-gw.
	// Traffic is counted for udp only.
	Backend   string `json:"backend,omitempty"`
	TXPackets uint64 `json:"tx_packets"`
	TXBytes   uint64 `json:"tx_bytes"`
	RXPackets uint64 `json:"rx_packets"`
	RXBytes   uint64 `json:"rx_bytes"`
	// Kernel is set if the kernel carries packets to a udp peer by itself.
	Kernel bool `json:"kernel,omitempty"`
	// KernelWhy is why user space carries packets to this udp peer although the kernel
	// carries those to others.
	KernelWhy string `json:"kernel_why,omitempty"`
	// Idle is the number of seconds since the last packet to or from the peer, accurate
	// to a second; with vxlan, since the last packet to it. It is nil if there never
	// was one, or if it is unknown.
	Idle *float64 `json:"idle_seconds,omitempty"`
	// Heard is the number of seconds since the last packet from the peer. Answers to
	// probes count and, where traffic is counted, packets of pods, accurate to a second.
	// It is nil if there never was one, or if it is unknown.
	Heard *float64 `json:"heard_seconds,omitempty"`
	// Probe is what probes have found; nil if the peer was not probed yet.
	Probe *Probe `json:"probe,omitempty"`
	// MTU is the size in bytes of the largest packet that arrives at the peer, if it is
	// smaller than the device's MTU and no ICMP error reports that; otherwise 0.
	MTU int `json:"mtu,omitempty"`
	// Notes describe anything unusual about the path to the peer.
	Notes []string `json:"notes,omitempty"`
}

// Probe is what the pings of --probe-interval have found about a peer.
type Probe struct {
	Sent uint64  `json:"sent"` // answered or lost; a pending one is not counted yet
	Lost uint64  `json:"lost"`
	Loss float64 `json:"loss_ratio"`            // of the last 10
	RTT  float64 `json:"rtt_seconds,omitempty"` // of the last that was answered; 0: none was
}

// BackendName returns the backend that carries packets to the peer. It is udp if the
// document does not name one.
func (p *Peer) BackendName() string { return cmp.Or(p.Backend, "udp") }

// Target returns the address of the peer for pings that take the same path as packets of
// pods: the address of its tunnel device, which is the first of its subnet. Plain routes
// have no tunnel device, so for them it is the public address, to which they lead.
func (p *Peer) Target() netip.Addr {
	if p.Backend == KindHostGW || len(p.Subnets) == 0 {
		return p.PublicIP
	}
	return p.Subnets[0].Masked().Addr()
}

// HeardAgo records that a packet from the peer arrived that long ago: Heard becomes at
// most ago.
func (p *Peer) HeardAgo(ago time.Duration) {
	if seconds := ago.Seconds(); p.Heard == nil || seconds < *p.Heard {
		p.Heard = &seconds
	}
}

// Counted reports whether traffic to and from the peer is counted: packets that
// the kernel carries are not counted per peer.
func (p *Peer) Counted() bool { return p.Backend == "" || p.Backend == "udp" }

// Watched reports whether the time of the last packet to the peer is known.
func (p *Peer) Watched() bool { return p.Counted() || p.Backend == KindVXLAN }

// Source is the health of the lease store.
type Source struct {
	Name        string    `json:"name"`                   // "file /etc/twill/leases.json"
	Leases      int       `json:"leases"`                 // in force, including this node's own
	Updated     time.Time `json:"updated,omitzero"`       // when the set in force arrived
	LastError   string    `json:"last_error,omitempty"`   // the current refusal, or empty
	LastErrorAt time.Time `json:"last_error_at,omitzero"` // when LastError occurred
	// Conflicts is how many subnets of leases are left out because they overlap
	// others; ConflictsWhy describes the first of them.
	Conflicts    int    `json:"conflicts,omitempty"`
	ConflictsWhy string `json:"conflicts_why,omitempty"`
	// AwaySince is when the store stopped answering or began to refuse this node,
	// and Away is the reason. Known data stays in force.
	AwaySince time.Time `json:"away_since,omitzero"`
	Away      string    `json:"away,omitempty"`
}
