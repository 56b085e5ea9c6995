package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// sysctl reads a numeric sysctl in the calling thread's network namespace. key
// is the path under /proc/sys, with slashes, since interfaces' names may have
// dots.
func sysctl(key string) (int, error) {
	text, err := os.ReadFile(filepath.Join("/proc/sys", key))
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("/proc/sys/%s: %w", key, err)
	}
	return n, nil
}

// setSysctl returns the command that sets a sysctl. sysctl(8) accepts slashes.
func setSysctl(key string, value int) string { return fmt.Sprintf("sysctl -w %s=%d", key, value) }

// networks returns the pod networks from the daemon, the config or the subnet file.
func (x *examination) networks() []netip.Prefix {
	switch {
	case x.Daemon != nil && len(x.Daemon.Network) > 0:
		return x.Daemon.Network
	case x.Config != nil:
		return x.Config.Networks()
	}
	return slices.DeleteFunc([]netip.Prefix{x.Env.Network, x.Env.IPv6Network}, func(p netip.Prefix) bool { return !p.IsValid() })
}

// forwarding checks that the kernel forwards packets between pods and devices.
func (x *examination) forwarding(context.Context) []Finding {
	keys := []string{"net/ipv4/ip_forward"}
	for _, d := range x.devices() {
		// Writing ip_forward sets the value of all interfaces, so it comes first.
		keys = append(keys, "net/ipv4/conf/"+d+"/forwarding")
	}
	if slices.ContainsFunc(x.networks(), func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		keys = append(keys, "net/ipv6/conf/all/forwarding")
	}
	for _, key := range keys {
		switch n, err := sysctl(key); {
		case err != nil && errors.Is(err, fs.ErrNotExist) && strings.Contains(key, "/conf/"):
			return []Finding{badf("", "%v; the device may be gone, or IPv6 disabled", err)}
		case err != nil:
			return []Finding{warnf("", "%v", err)}
		case n == 0:
			return []Finding{badf(setSysctl(key, 1), "%s is 0: the kernel does not forward packets to pods", key)}
		}
	}
	return []Finding{okf("on")}
}

// strict is the value of rp_filter that drops packets which arrive on another
// interface than the one the answer would leave by; the greater of the values of
// "all" and the interface applies (Documentation/networking/ip-sysctl.rst).
const (
	strict = 1
	loose  = 2
)

// reversePath finds peers whose packets the kernel drops because the answer would
// leave by another interface.
func (x *examination) reversePath(context.Context) []Finding {
	type way struct {
		link string
		to   netip.Addr
	}
	var ways []way
	if d := x.Daemon; d != nil && d.Underlay != nil {
		for _, p := range x.paths() {
			ways = append(ways, way{d.Underlay.Name, p.public})
		}
	}
	for _, p := range x.paths() {
		if d := x.deviceOf(p.kind); d != "" && p.tunnelled() {
			ways = append(ways, way{d, p.subnet.Addr()})
		}
	}
	all, err := sysctl("net/ipv4/conf/all/rp_filter")
	if err != nil {
		return []Finding{warnf("", "%v", err)}
	}
	done := map[string]bool{}
	var found []Finding
	for _, w := range ways {
		if done[w.link] || !w.to.Is4() {
			continue
		}
		key := "net/ipv4/conf/" + w.link + "/rp_filter"
		n, err := sysctl(key)
		if err != nil {
			found = append(found, warnf("", "%v", err))
			done[w.link] = true
			continue
		}
		if out := linkTo(w.to); max(n, all) == strict && out != w.link {
			done[w.link] = true
			found = append(found, badf(setSysctl(key, loose),
				"packets from %s arrive on %s, but the route back is through %s: the kernel drops them (%s)", w.to, w.link, out, key))
		}
	}
	if len(found) == 0 {
		found = append(found, okf("does not drop packets of any peer"))
	}
	return found
}

// linkTo returns the name of the interface by which the kernel sends to an
// address.
func linkTo(a netip.Addr) string {
	routes, err := netlink.RouteGet(net.IP(a.AsSlice()))
	if err != nil || len(routes) == 0 {
		return "none"
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "none"
	}
	return link.Attrs().Name
}

// bridge checks that kube-proxy's rules apply to packets between pods on one
// node.
func (x *examination) bridge(ctx context.Context) []Finding {
	nat, err := readChains(ctx, "iptables", "nat")
	if err != nil || nat.chains["KUBE-SERVICES"] == nil {
		return []Finding{okf("kube-proxy is not running here, so bridged packets need not pass through iptables")}
	}
	const key = "net/bridge/bridge-nf-call-iptables"
	switch n, err := sysctl(key); {
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{warnf("modprobe br_netfilter && "+setSysctl(key, 1),
			"br_netfilter is not loaded: pods cannot reach services whose pod is on the same node")}
	case err != nil:
		return []Finding{warnf("", "%v", err)}
	case n == 0:
		return []Finding{warnf(setSysctl(key, 1), "%s is 0: pods cannot reach services whose pod is on the same node", key)}
	}
	return []Finding{okf("bridged packets pass through kube-proxy's rules")}
}
