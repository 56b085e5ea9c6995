package vxlan

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// stockFlannel is a node that runs stock flannel, with an etcd, in a host's
// namespace.
type stockFlannel struct {
	host
	endpoint, binary string
}

// buildStockFlannel returns the path of the program.
func buildStockFlannel(t *testing.T) string {
	t.Helper()
	netlabtest.Root(t)
	binary := filepath.Join(t.TempDir(), "flannel")
	build := exec.Command("go", "build", "-C", "../../../bench/peers/flannel", "-o", binary, "github.com/flannel-io/flannel")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build stock flannel: %v\n%s", err, out)
	}
	return binary
}

func newStockFlannel(h host, binary string) *stockFlannel {
	h.Helper()
	return &stockFlannel{host: h, binary: binary, endpoint: etcdtest.Start(h, etcdtest.Options{
		Host: local4.String(),
		Command: func(name string, args ...string) (*exec.Cmd, func() error) {
			c := h.ns.Command(context.Background(), name, args...)
			return c.Cmd, c.Start
		},
	}).Endpoint}
}

func (s *stockFlannel) put(key, value string) {
	s.Helper()
	etcdctl, err := etcdtest.Binary("etcdctl")
	s.must(err)
	cmd := s.ns.Command(context.Background(), etcdctl, "--endpoints="+s.endpoint, "put", "/coreos.com/network/"+key, value)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("%v\n%s", err, out)
	}
}

// run runs stock flannel until its device has what ready says.
func (s *stockFlannel) run(ready func() bool) {
	s.Helper()
	cmd := s.ns.Command(context.Background(), s.binary, "--etcd-endpoints="+s.endpoint, "--iface=eth0",
		"--subnet-file="+filepath.Join(s.TempDir(), "subnet.env"), "--iptables-forward-rules=false")
	out := new(testkit.Log)
	cmd.Stdout, cmd.Stderr = out, out
	s.must(cmd.Start())
	s.Cleanup(func() {
		_ = cmd.Process.Kill() // an error means that it has ended
		_ = cmd.Wait()
		if s.Failed() {
			s.Logf("stock flannel says:\n%s", out)
		}
	})
	testkit.Eventually(s, "stock flannel is ready", func() bool { return strings.Contains(out.String(), "flannel is ready") && ready() })
	// Not asked to, for then it does not always end.
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// attributes are those of a link and, by "data" and their numbers, those that
// VXLAN devices have, as the kernel lists them. Left out is what no two devices
// have in common: counters, and what an address family says of it.
func (h host) attributes(name string) map[string]string {
	h.Helper()
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(h.link(name).Attrs().Index)
	req.AddData(msg)
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	h.must(err)
	all := make(map[string]string)
	add := func(prefix string, b []byte, leaveOut ...uint16) {
		attrs, err := nl.ParseRouteAttr(b)
		h.must(err)
		for _, a := range attrs {
			all[fmt.Sprint(prefix, a.Attr.Type&nl.NLA_TYPE_MASK)] = hex.EncodeToString(a.Value)
		}
		for _, kind := range leaveOut {
			delete(all, fmt.Sprint(prefix, kind))
		}
	}
	add("", answers[0][unix.SizeofIfInfomsg:], unix.IFLA_STATS, unix.IFLA_STATS64, unix.IFLA_AF_SPEC,
		unix.IFLA_CARRIER_CHANGES, unix.IFLA_CARRIER_UP_COUNT, unix.IFLA_CARRIER_DOWN_COUNT, unix.IFLA_LINKINFO)
	all["flags"] = hex.EncodeToString(answers[0][8:12]) // ifi_flags
	attrs, err := nl.ParseRouteAttr(answers[0][unix.SizeofIfInfomsg:])
	h.must(err)
	for _, a := range attrs {
		if a.Attr.Type&nl.NLA_TYPE_MASK != unix.IFLA_LINKINFO {
			continue
		}
		infos, err := nl.ParseRouteAttr(a.Value)
		h.must(err)
		for _, info := range infos {
			if info.Attr.Type&nl.NLA_TYPE_MASK == nl.IFLA_INFO_DATA {
				add("data ", info.Value)
			}
		}
	}
	return all
}

// TestStockFlannelsDeviceIsTakenOver: with its peers, without a single write.
// And one that is made in its place is the same to the last attribute.
func TestStockFlannelsDeviceIsTakenOver(t *testing.T) {
	binary := buildStockFlannel(t)
	const dual = `"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"`
	for _, tt := range []struct {
		name, config string
		configs      func(h host) []setup
		// sameMTU: stock flannel takes 50 bytes from the MTU for IPv6 too, which
		// is 20 too few.
		sameMTU []bool
	}{
		{"IPv4", `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}`,
			func(h host) []setup { return []setup{h.config4()} }, []bool{true}},
		{"dual stack", `{` + dual + `, "Backend": {"Type": "vxlan"}}`,
			func(h host) []setup { return []setup{h.config4(), h.config6()} }, []bool{true, false}},
		{"all options", `{` + dual + `, "Backend": {"Type": "vxlan", "VNI": 77, "Port": 4789, "MTU": 1400, "GBP": true, "Learning": true}}`,
			func(h host) []setup {
				a, b := h.config4(), h.config6()
				a.Options = Options{VNI: 77, Port: 4789, MTU: 1400, GBP: true, Learning: true}
				b.Options = a.Options
				return []setup{a, b}
			}, []bool{true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inside(t, func(h host) {
				s := newStockFlannel(h, binary)
				cfgs := tt.configs(h)
				s.put("config", tt.config)
				vni := cfgs[0].VNI
				peers := []Peer{peer4(2), peer6(2)}[:len(cfgs)]
				key, value := "subnets/10.5.2.0-24", fmt.Sprintf(`"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":%s`,
					peers[0].Endpoint, encoded(Data{vni, HardwareAddr(peers[0].MAC)}))
				if len(peers) == 2 {
					key, value = "subnets/10.5.2.0-24&fd00:5:0:2::-64", strings.Replace(value, "null", fmt.Sprintf("%q", peers[1].Endpoint), 1)+
						fmt.Sprintf(`,"BackendV6Data":%s`, encoded(Data{vni, HardwareAddr(peers[1].MAC)}))
				}
				s.put(key, "{"+value+"}")
				s.run(func() bool {
					for i, cfg := range cfgs {
						if _, err := h.nl.LinkByName(Name(vni, cfg.IPv6)); err != nil {
							return false
						}
						table := strings.Join(h.table(Name(vni, cfg.IPv6)), "\n")
						for _, line := range lines(peers[i]) {
							if !strings.Contains(table, line) {
								return false
							}
						}
					}
					return true
				})
				for i, cfg := range cfgs {
					name := Name(vni, cfg.IPv6)
					for _, a := range h.addrs(name) {
						if !strings.HasPrefix(a, "fe80:") {
							cfg.Subnets = []netip.Prefix{netip.PrefixFrom(netip.MustParsePrefix(a).Addr(), cfg.Subnets[0].Bits())}
						}
					}
					stock := h.attributes(name)
					heard := h.listen()
					d := h.open(cfg)
					h.must(d.add(peers[i:i+1]...), d.retain(peers[i:i+1]...))
					if got := heard(name); tt.sameMTU[i] && len(got) > 0 {
						t.Errorf("%s: changes were announced:\n%s", name, strings.Join(got, "\n"))
					}
					h.hasTable(name, lines(peers[i])...)
					h.must(d.Delete(), d.Close())

					cfg.MAC = d.MAC
					h.must(h.open(cfg).Close())
					ours := h.attributes(name)
					if !tt.sameMTU[i] {
						ours[fmt.Sprint(unix.IFLA_MTU)] = stock[fmt.Sprint(unix.IFLA_MTU)]
					}
					if !maps.Equal(ours, stock) {
						t.Errorf("%s has\n%v\nthat of stock flannel\n%v", name, ours, stock)
					}
				}
			})
		})
	}
}
