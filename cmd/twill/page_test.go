package main

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/diag"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/remote"
	"github.com/twillnet/twill/internal/status"
)

// pinged returns the page of a ping whose last round is answered and the others lost.
func pinged(peer status.Peer, tunnel netip.Addr) string {
	to := &target{peer: peer, underlay: echo.Ping{To: peer.PublicIP}, tunnel: echo.Ping{To: tunnel}}
	r := pingReport{Underlay: wayReport{To: peer.PublicIP}, Tunnel: wayReport{To: tunnel}}
	page := to.describe()
	for n := range 3 {
		got := map[echo.Ping]time.Duration{}
		if n == 2 {
			got[to.underlay], got[to.tunnel] = 144*time.Microsecond, 999999*time.Microsecond
		}
		page += r.round(n+1, got, to)
	}
	if r.Underlay.Largest = 9000; tunnel.IsValid() {
		r.Tunnel.Largest = 8972
	}
	return page + r.summary()
}

func TestPingFitsIn80Columns(t *testing.T) {
	subnets := []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:10:244:2::/64")}
	testkit.Page(t, "ping.txt", pinged(status.Peer{
		PublicIP: netip.MustParseAddr("192.0.2.12"), Subnets: subnets, Backend: "udp",
		Notes: []string{"sent from port 8285, as the peer does", "its checksums are completed here, since its lease does not announce that it takes partial ones"},
	}, netip.MustParseAddr("10.244.2.0")))
	testkit.Page(t, "ping-plain.txt", pinged(status.Peer{
		PublicIP: netip.MustParseAddr("2001:db8:1234:5678:1234:5678:9abc:def0"), Subnets: subnets, Backend: status.KindHostGW,
	}, netip.Addr{}))
}

func TestLeasesFitIn80Columns(t *testing.T) {
	now := time.Date(2025, 11, 21, 14, 5, 0, 0, time.UTC)
	idle := 47 * 3600.0
	rows := []leaseRow{
		{Subnets: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, PublicIP: netip.MustParseAddr("192.0.2.11"), Backend: "udp", Expiration: now.Add(23*time.Hour + 59*time.Minute), Own: true},
		{Subnets: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}, PublicIP: netip.MustParseAddr("192.0.2.12"), Backend: "udp", Expiration: now.Add(time.Hour), Traffic: &traffic{1 << 40, 1 << 60, 1 << 40, 999_400}, Idle: &idle, watched: true},
		{Subnets: []netip.Prefix{netip.MustParsePrefix("10.244.7.0/24")}, Backend: "udp", Reserved: true},
	}
	testkit.Page(t, "leases.txt", leasesPage(rows, now))

	rows[1].Subnets = append(rows[1].Subnets, netip.MustParsePrefix("fd00:10:244:2::/64"))
	testkit.Page(t, "leases-dual.txt", leasesPage(rows, now))

	rows[1].PublicIPv6 = netip.MustParseAddr("2001:db8:1234:5678:1234:5678:9abc:def0")
	testkit.Page(t, "leases-wide.txt", leasesPage(rows, now))
}

// TestNodesOfDiagFitIn80Columns: doctor's page, which each node sends, has 80 columns.
func TestNodesOfDiagFitIn80Columns(t *testing.T) {
	var found, page bytes.Buffer
	testkit.Must(t, doctor.Write(&found, []doctor.Finding{{
		Check: "forwarding", Level: doctor.Bad, Remedy: "sysctl -w net/ipv4/ip_forward=1",
		Text: "net/ipv4/ip_forward is 0: the kernel does not forward packets to pods on its own",
	}}))
	node := func(addr string) member { return member{Node: remote.Node{Addr: netip.MustParseAddr(addr)}} }
	reportNode(&page, node("192.0.2.11"), diag.Taken{Files: 31, Bytes: 48213}, nil)
	reportNode(&page, node("192.0.2.13"), diag.Taken{Files: 31, Bytes: 47901, Bad: strings.Split(strings.TrimSpace(found.String()), "\n")}, nil)
	reportNode(&page, node("2001:db8:1234:5678:1234:5678:9abc:def0"), diag.Taken{},
		errors.New("exit status 255: ssh: connect to host 192.0.2.12 port 22: \x1b[31mConnection refused"))
	testkit.Page(t, "diag-all.txt", page.String())
}
