package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// nebulaPath does more work than the others, since it encrypts.
var nebulaPath = Path{"nebula", "nebula (encrypts)", nebula, encryptingLoads}

const (
	nebulaPort = 4242
	// nebulaOverhead is IPv4 20, UDP 8, header 16 and tag 16. The default MTU
	// of 1300, intended for paths across the internet, would waste space.
	nebulaOverhead = 60
	// nebulaBuffer is the socket buffer size in nebula's example
	// configuration, in bytes, and nebulaQueue four times the default
	// length of its TUN queue, in packets: without both a stream overflows
	// them and loses thousands of packets per second.
	nebulaBuffer = 10 << 20
	nebulaQueue  = 2000
)

// nebula runs nebula on both hosts.
func nebula(ctx context.Context, topo *netlab.Topology, bin Binaries) (*Connection, error) {
	program, err := peerProgram(bin, "nebula")
	if err != nil {
		return nil, err
	}
	certifier, err := peerProgram(bin, "nebula-cert")
	if err != nil {
		return nil, err
	}
	mtu, err := underlayMTU(topo)
	if err != nil {
		return nil, err
	}
	mtu -= nebulaOverhead
	return inTempDir(func(dir string) (*Connection, error) {
		if err := certify(ctx, certifier, dir, topo.Hosts); err != nil {
			return nil, err
		}
		for i := range topo.Hosts {
			if err := writeNebulaConfig(dir, topo.Hosts, i, mtu); err != nil {
				return nil, err
			}
		}
		t := &tunnel{
			program: program,
			mtu:     mtu,
			args:    func(h *netlab.Host) []string { return []string{"-config", nebulaConfigFile(dir, h)} },
			raise: func(ctx context.Context, _ *netlab.Host, p *process) error {
				return p.waitUntil(ctx, func() bool { return strings.Contains(p.said(), "Nebula interface is active") })
			},
		}
		return t.connect(ctx, topo, dir)
	})
}

// nebulaAddrs are the addresses of host number i, counted from 0, inside
// nebula's own network. Each family of pod subnets needs one to be routed to.
func nebulaAddrs(i int) [2]netip.Prefix {
	return [2]netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 6, 0, byte(i + 1)}), 24),
		netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd00:10:6::%d", i+1)), 64),
	}
}

// certify creates an authority, and for each host a key and a certificate that
// allows it to send and receive for its pods, all in dir.
func certify(ctx context.Context, program, dir string, hosts []*netlab.Host) error {
	run := func(args ...string) error {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nebula-cert %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	// Version 1 supports IPv4 only.
	if err := run("ca", "-version", "2", "-name", "twill-lab bench"); err != nil {
		return err
	}
	for i, h := range hosts {
		addrs := nebulaAddrs(i)
		err := run("sign", "-name", h.Letter, "-out-crt", h.Letter+".crt", "-out-key", h.Letter+".key",
			"-networks", addrs[0].String()+","+addrs[1].String(),
			"-unsafe-networks", h.Subnet.String()+","+h.Subnet6.String())
		if err != nil {
			return err
		}
	}
	return nil
}

func nebulaConfigFile(dir string, h *netlab.Host) string {
	return filepath.Join(dir, h.Letter+".yml")
}

// writeNebulaConfig writes the configuration of host number i, counted from 0.
// It is JSON, which nebula reads as YAML.
func writeNebulaConfig(dir string, hosts []*netlab.Host, i, mtu int) error {
	type object map[string]any
	statics, routes := object{}, []object{}
	for j, peer := range hosts {
		if j == i {
			continue
		}
		via := nebulaAddrs(j)[0].Addr().String()
		statics[via] = []string{netip.AddrPortFrom(peer.Addr, nebulaPort).String()}
		routes = append(routes,
			object{"route": peer.Subnet.String(), "via": via},
			object{"route": peer.Subnet6.String(), "via": via})
	}
	// Without local_cidr a rule does not cover pods.
	everything := []object{{"port": "any", "proto": "any", "host": "any", "local_cidr": "any"}}
	self := hosts[i]
	text, err := json.MarshalIndent(object{
		"pki": object{
			"ca":   filepath.Join(dir, "ca.crt"),
			"cert": filepath.Join(dir, self.Letter+".crt"),
			"key":  filepath.Join(dir, self.Letter+".key"),
		},
		"static_host_map": statics,
		"listen": object{
			"host": self.Addr.String(), "port": nebulaPort,
			"read_buffer": nebulaBuffer, "write_buffer": nebulaBuffer,
		},
		"tun":      object{"dev": "nebula0", "mtu": mtu, "tx_queue": nebulaQueue, "unsafe_routes": routes},
		"firewall": object{"inbound": everything, "outbound": everything},
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(nebulaConfigFile(dir, self), append(text, '\n'), 0o600)
}
