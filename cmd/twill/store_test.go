package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
)

// operator runs twill's commands on a real etcd.
type operator struct {
	*testing.T
	server *etcdtest.Server
	store  *etcd.Store
}

const someConfig = `{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}`

func newOperator(t *testing.T) *operator {
	t.Helper()
	server := etcdtest.Start(t, etcdtest.Options{})
	store, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{server.Endpoint}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	t.Setenv("FLANNELD_ETCD_ENDPOINTS", server.Endpoint)
	return &operator{t, server, store}
}

func (o *operator) twill(args ...string) (stdout, stderr string, err error) {
	o.Helper()
	var out, log bytes.Buffer
	err = program.Run(o.Context(), args, &out, &log)
	return out.String(), log.String(), err
}

// prints runs a command that must succeed and print want.
func (o *operator) prints(want string, args ...string) {
	o.Helper()
	if out, log, err := o.twill(args...); err != nil || out != want || log != "" {
		o.Errorf("twill %s printed %q, %q and failed with %v; want %q", strings.Join(args, " "), out, log, err, want)
	}
}

// refuses runs a command that must fail with an error that has want in it.
func (o *operator) refuses(want string, args ...string) {
	o.Helper()
	if out, _, err := o.twill(args...); err == nil || !strings.Contains(err.Error(), want) {
		o.Errorf("twill %s printed %q and failed with %v; want %q", strings.Join(args, " "), out, err, want)
	}
}

func (o *operator) file(text string) string {
	o.Helper()
	path := filepath.Join(o.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		o.Fatal(err)
	}
	return path
}

// acquire takes a lease for the node at an address.
func (o *operator) acquire(ip string, previous string) *lease.Lease {
	o.Helper()
	l, err := o.store.Acquire(o.Context(), lease.Attrs{PublicIP: netip.MustParseAddr(ip)},
		lease.Previous{Subnet: netip.MustParsePrefix(previous)})
	if err != nil || l.Subnet.String() != previous {
		o.Fatalf("acquire %s: %v, %v", previous, l, err)
	}
	return l
}

// daemonSays runs what answers for a twilld, and returns its socket.
func daemonSays(t *testing.T, d status.Document) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "twill") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "twilld.sock")
	s, err := status.Listen(socket, func() status.Document { return d }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return socket
}

// TestStoreIsWhereTheDaemonHasIt: no flag and no variable names it.
func TestStoreIsWhereTheDaemonHasIt(t *testing.T) {
	o := newOperator(t)
	t.Setenv("FLANNELD_ETCD_ENDPOINTS", "")
	socket := daemonSays(t, status.Document{Settings: &status.Settings{Endpoints: []string{o.server.Endpoint}, Prefix: "/pods"}})
	o.prints("written: network 10.5.0.0/16, backend udp\n", "config", "set", o.file(someConfig), "--socket", socket)
	if got, err := o.server.Client(t).Get(t.Context(), "/pods/config"); err != nil || got.Count != 1 {
		t.Errorf("%v keys named /pods/config, %v", got, err)
	}
	o.prints(someConfig+"\n", "config", "get", "--socket", socket)
	o.prints("10.5.3.0/24 is reserved: no node gets it\n", "reserve", "10.5.3.0/24", "--socket", socket)
	if out, _, err := o.twill("leases", "--socket", socket); err != nil || !strings.Contains(out, "10.5.3.0/24") {
		t.Errorf("leases: got %q, %v", out, err)
	}
	o.refuses("no network config", "config", "get", "--socket", socket, "--etcd-prefix=/other")
	t.Setenv("FLANNELD_ETCD_PREFIX", "/other")
	o.refuses("no network config", "config", "get", "--socket", socket)
	o.refuses("http://127.0.0.1:1", "config", "get", "--socket", socket, "--etcd-endpoints=http://127.0.0.1:1", "--timeout=200ms")
}

// TestEtcdIsShownTheCertificateOfTheDaemon: the etcd of the daemon, and no other.
func TestEtcdIsShownTheCertificateOfTheDaemon(t *testing.T) {
	o := &operator{T: t}
	authority := etcdtest.NewAuthority(t)
	secured := etcdtest.Start(t, etcdtest.Options{CA: authority})
	cert, key, err := authority.Issue("daemon", "")
	if err != nil {
		t.Fatal(err)
	}
	settings := &status.Settings{Endpoints: []string{secured.Endpoint}, Prefix: "/pods", CAFile: authority.CertFile, CertFile: cert, KeyFile: key}
	socket := daemonSays(t, status.Document{Settings: settings})
	o.prints("written: network 10.5.0.0/16, backend udp\n", "config", "set", o.file(someConfig), "--socket", socket)
	o.prints(someConfig+"\n", "config", "get", "--socket", socket)
	// For all that is known, the flag names another etcd.
	o.refuses(secured.Endpoint, "config", "get", "--socket", socket, "--etcd-endpoints", secured.Endpoint, "--etcd-cafile", authority.CertFile, "--timeout=1s")
	o.refuses("set both --etcd-certfile and --etcd-keyfile, or neither", "config", "get", "--socket", socket, "--etcd-certfile=")
}

// TestFilesAreWhereTheDaemonHasThem: leases come from a file, and there is no etcd.
func TestFilesAreWhereTheDaemonHasThem(t *testing.T) {
	dir := t.TempDir()
	leases, subnets := filepath.Join(dir, "leases.json"), filepath.Join(dir, "subnet.env")
	for path, text := range map[string]string{
		leases:  `{"Network": "10.5.0.0/16", "Leases": [{"Subnet": "10.5.1.0/24", "PublicIP": "192.0.2.1"}]}`,
		subnets: "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	socket := daemonSays(t, status.Document{Settings: &status.Settings{SubnetFile: subnets, LeaseFile: leases}})
	o := &operator{T: t}
	if out, _, err := o.twill("leases", "--socket", socket); err != nil || !strings.Contains(out, "192.0.2.1  10.5.1.0/24") {
		t.Errorf("leases: got %q, %v", out, err)
	}
	o.refuses("reads its leases from "+leases+", not from etcd", "config", "get", "--socket", socket)
	o.refuses("reads its leases from "+leases+", not from etcd", "reserve", "10.5.3.0/24", "--socket", socket)
	out, _, _ := o.twill("doctor", "--json", "--socket", socket)
	if f := finding(t, out, "store"); f.Level != doctor.OK || !strings.Contains(f.Text, "1 leases are valid") {
		t.Errorf("doctor: got %+v", f)
	}
	if f := finding(t, out, "subnet-file"); f.Level != doctor.OK || !strings.Contains(f.Text, "10.5.1.0/24") {
		t.Errorf("doctor: got %+v", f)
	}

	if out, _, err := o.twill("leases", "--socket", socket); err != nil || !strings.Contains(out, " never ") || strings.Contains(out, "reserved") {
		t.Errorf("a lease in a file does not expire, and is no reservation: %v\n%s", err, out)
	}

	// Flags come first.
	out, _, _ = o.twill("doctor", "--json", "--socket", socket, "--subnet-file=/nonexistent/subnet.env", "--lease-file=/nonexistent/leases.json")
	for check, file := range map[string]string{"store": "/nonexistent/leases.json", "subnet-file": "/nonexistent/subnet.env"} {
		if f := finding(t, out, check); f.Level != doctor.Bad || !strings.Contains(f.Text, file) {
			t.Errorf("doctor: got %+v, want %s to be missing", f, file)
		}
	}
}

func TestOnlyAConfigThatNodesCanUseIsSet(t *testing.T) {
	o := newOperator(t)
	o.refuses("no network config", "config", "get")
	o.prints("written: network 10.5.0.0/16, backend udp\n", "config", "set", o.file(someConfig))
	o.prints(someConfig+"\n", "config", "get")
	for text, want := range map[string]string{
		``:  "the text is empty",
		`{`: "line 1, column 2",
		`{"Network": "10.5.0.0/16", "SubnetLen": 31}`:                                   "SubnetLen 31: want a whole number from 18 to 30",
		`{"Backend": {"Type": "udp"}}`:                                                  "Network is missing",
		`{"Network": "127.0.0.0/8"}`:                                                    "127.0.0.0/8 (loopback)",
		`{"Network": "224.0.0.0/4"}`:                                                    "224.0.0.0/4 (multicast)",
		`{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": "many"}}`:        "Backend.Port",
		`{"Network": "10.5.0.0/16", "Backend": {"Type": "ipsec", "PSK": "very quiet"}}`: `backend type "ipsec" is not supported`,
	} {
		o.refuses(want, "config", "set", o.file(text))
		o.refuses("nothing was written", "config", "set", o.file(text))
	}
	o.refuses("nowhere.json", "config", "set", "/nonexistent/nowhere.json")
	o.prints(someConfig+"\n", "config", "get")
}

// TestLeasesThatNoLongerFitAChangedConfigAreCounted: nodes keep them until they restart.
func TestLeasesThatNoLongerFitAChangedConfigAreCounted(t *testing.T) {
	o := newOperator(t)
	o.prints("written: network 10.5.0.0/16, backend udp\n", "config", "set", o.file(someConfig))
	for i := range 5 {
		o.acquire(fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("10.5.%d.0/24", i+1))
	}
	for config, want := range map[string]string{
		`{"Network": "10.5.0.0/16", "SubnetLen": 25}`:         "5 of 5 leases do not fit this config (10.5.1.0/24 of 192.0.2.1, 10.5.2.0/24 of 192.0.2.2, 10.5.3.0/24 of 192.0.2.3 and 2 more): their nodes get other subnets when twilld restarts there",
		`{"Network": "10.5.0.0/16", "SubnetMin": "10.5.5.0"}`: "4 of 5 leases do not fit",
		`{"Network": "10.5.0.0/16", "SubnetMax": "10.5.4.0"}`: "1 of 5 leases do not fit this config (10.5.5.0/24 of 192.0.2.5)",
		`{"Network": "10.6.0.0/16"}`:                          "5 of 5 leases do not fit",
	} {
		if _, log, err := o.twill("config", "set", o.file(config)); err != nil || !strings.Contains(log, want) {
			t.Errorf("%s: got %q, %v; want %q", config, log, err, want)
		}
	}
	o.prints("written: network 10.5.0.0/16, backend vxlan\n", "config", "set", o.file(`{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}`))
}

func TestMisspeltKeyIsWrittenWithAWarning(t *testing.T) {
	o := newOperator(t)
	out, log, err := o.twill("config", "set", o.file(`{"network": "10.5.0.0/16", "SubnetLenght": 26}`))
	if err != nil || !strings.HasPrefix(out, "written") || !strings.Contains(log, `key "SubnetLenght" has no meaning`) || strings.Contains(log, `"network"`) {
		t.Errorf("got %q, %q, %v", out, log, err)
	}
}

func TestBrokenConfigIsPrintedWithWhatIsWrong(t *testing.T) {
	o := newOperator(t)
	if _, err := o.server.Client(t).Put(t.Context(), etcd.DefaultPrefix+"/config", `{"Network": "10.5.0.0/33"}`); err != nil {
		t.Fatal(err)
	}
	out, log, err := o.twill("config", "get")
	if err != nil || out != `{"Network": "10.5.0.0/33"}`+"\n" || !strings.Contains(log, "Network") {
		t.Errorf("got %q, %q, %v", out, log, err)
	}
}

func TestReservedSubnetIsReleasedToTheNodeThatHasIt(t *testing.T) {
	o := newOperator(t)
	o.prints("written: network 10.5.0.0/16, backend udp\n", "config", "set", o.file(someConfig))
	o.acquire("192.0.2.1", "10.5.1.0/24")

	o.prints("10.5.1.0/24 is reserved for 192.0.2.1\n", "reserve", "10.5.1.0/24")
	o.prints("10.5.2.0/24 is reserved for 192.0.2.2\n", "reserve", "10.5.2.0-24", "--public-ip", "192.0.2.2")
	o.prints("10.5.3.0/24 is reserved: no node gets it\n", "reserve", "10.5.3.0/24")
	o.refuses("10.5.3.0-24 is taken by", "reserve", "10.5.3.0/24", "--public-ip=192.0.2.3")
	o.refuses("the network allocates /24 subnets", "reserve", "10.6.0.0/24")
	if l := o.acquire("192.0.2.2", "10.5.2.0/24"); !l.Expiration.IsZero() {
		t.Errorf("the reservation ends at %s", l.Expiration)
	}

	out, _, err := o.twill("release", "10.5.1.0/24")
	if want := "10.5.1.0/24 is now a lease of 192.0.2.1, until "; err != nil || !strings.HasPrefix(out, want) {
		t.Errorf("got %q, %v, want %q", out, err, want)
	}
	o.prints("10.5.3.0/24 is free\n", "release", "10.5.3.0/24")
	o.refuses("list all with twill leases", "release", "10.5.3.0/24")
	o.refuses("it is the lease of 192.0.2.1", "release", "10.5.1.0/24")
}

func TestLeasesAreListedWithWhatTheLocalDaemonKnows(t *testing.T) {
	o := newOperator(t)
	o.prints("written: network 10.5.0.0/16, backend udp\n", "config", "set", o.file(someConfig))
	o.acquire("192.0.2.1", "10.5.1.0/24")
	o.acquire("192.0.2.2", "10.5.2.0/24")
	o.prints("10.5.3.0/24 is reserved: no node gets it\n", "reserve", "10.5.3.0/24")
	o.acquire("192.0.2.4", "10.5.4.0/24")
	o.acquire("192.0.2.5", "10.5.5.0/24") // the daemon has not heard of it yet
	o.acquire("192.0.2.6", "10.5.6.0/24")
	o.acquire("192.0.2.7", "10.5.7.0/24")

	idle := 3.7
	socket := daemonSays(t, status.Document{
		Lease: &status.Lease{Subnet: netip.MustParsePrefix("10.5.1.0/24")},
		Dataplane: &status.Dataplane{Peers: []status.Peer{
			{Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.2.0/24")}, TXBytes: 1234, RXBytes: 5678, TXPackets: 12, RXPackets: 56, Idle: &idle},
			{Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.4.0/24")}},
			{Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.6.0/24")}, Backend: "vxlan", Idle: &idle}, // the kernel's
			{Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.7.0/24")}, Backend: "host-gw"},
		}},
	})

	o.prints(""+
		"NODE       SUBNET       BACKEND  EXPIRES    LAST TRAFFIC  SENT     RECEIVED\n"+
		"192.0.2.1  10.5.1.0/24  udp      in 23h59m  (this node)   -        -\n"+
		"192.0.2.2  10.5.2.0/24  udp      in 23h59m  3s ago        1.23 kB  5.68 kB\n"+
		"none       10.5.3.0/24  udp      reserved   -             -        -\n"+
		"192.0.2.4  10.5.4.0/24  udp      in 23h59m  never         0 B      0 B\n"+
		"192.0.2.5  10.5.5.0/24  udp      in 23h59m  -             -        -\n"+
		"192.0.2.6  10.5.6.0/24  udp      in 23h59m  3s ago        -        -\n"+
		"192.0.2.7  10.5.7.0/24  udp      in 23h59m  -             -        -\n",
		"leases", "--socket", socket)

	out, _, err := o.twill("leases", "--json", "--socket", socket)
	if err != nil {
		t.Fatal(err)
	}
	var rows []leaseRow
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 7 {
		t.Fatalf("got %s: %v", out, err)
	}
	if !rows[0].Own || rows[1].Own || !rows[2].Reserved || time.Until(rows[0].Expiration) < 23*time.Hour || strings.Contains(out, "0001-01-01") {
		t.Errorf("got %s", out)
	}
	if !reflect.DeepEqual(rows[1].Traffic, &traffic{12, 1234, 56, 5678}) || !reflect.DeepEqual(rows[3].Traffic, &traffic{}) || rows[4].Traffic != nil || rows[5].Traffic != nil {
		t.Errorf("traffic in %s", out)
	}
	for i, want := range []*float64{1: &idle, 5: &idle, 6: nil} {
		if !reflect.DeepEqual(rows[i].Idle, want) {
			t.Errorf("row %d: seconds idle in %s", i, out)
		}
	}

	// Without a daemon nothing of it is known, which is not an error.
	out, _, err = o.twill("leases", "--socket=/nonexistent/twilld.sock")
	if err != nil || strings.Contains(out, "this node") || strings.Count(out, "\n") != 8 {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestLastTrafficIsShownAsPreciselyAsItMatters(t *testing.T) {
	for seconds, want := range map[float64]string{
		0: "0s ago", 59.9: "59s ago", 60: "1m ago", 3599: "59m ago", 3600: "1h ago",
		47 * 3600: "47h ago", 48 * 3600: "2d ago", 1e300: "365d ago",
	} {
		if got := lastTraffic(leaseRow{Idle: &seconds, watched: true}); got != want {
			t.Errorf("idle for %v s: got %q, want %q", seconds, got, want)
		}
	}
}

func TestAnEtcdThatIsAwayIsNamedAfterTheTimeout(t *testing.T) {
	for _, args := range [][]string{{"leases"}, {"config", "get"}, {"reserve", "10.5.1.0/24"}, {"release", "10.5.1.0/24"}} {
		var out, log bytes.Buffer
		err := program.Run(t.Context(), append(args, "--timeout=200ms", "--etcd-endpoints=http://127.0.0.1:1"), &out, &log)
		if err == nil || !strings.Contains(err.Error(), "http://127.0.0.1:1") || !strings.Contains(err.Error(), "correct --etcd-endpoints") {
			t.Errorf("%s: got %v", args, err)
		}
	}
}

func TestWrongCommandLineOfAStoreCommandIsAUsageError(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"leases", "all"}, `leases: unexpected argument "all"`},
		{[]string{"leases", "--timeout=0s"}, "leases: --timeout 0s: want more than 0"},
		{[]string{"config"}, "config: want get or set"},
		{[]string{"config", "put"}, `config: unknown command "put"; commands are get and set`},
		{[]string{"config", "get", "it"}, `config: unexpected argument "it"`},
		{[]string{"config", "set", "a", "b"}, `config: unexpected argument "b"`},
		{[]string{"reserve"}, "reserve: no subnet given"},
		{[]string{"reserve", "here"}, `reserve: "here" is not a subnet`},
		{[]string{"reserve", "10.5.7.1/24"}, "10.5.7.1/24 is an address inside the subnet 10.5.7.0/24"},
		{[]string{"reserve", "10.5.7.0/24,10.5.8.0/24"}, "two subnets of one address family"},
		{[]string{"reserve", "10.5.7.0/24", "--public-ip=fd00::1"}, "want an IPv4 address"},
		{[]string{"release", "10.5.7.0/24", "10.5.8.0/24"}, `release: unexpected argument "10.5.8.0/24"`},
		{[]string{"release", "10.5.7.0/24", "--etcd-username=me"}, "set both --etcd-username and --etcd-password"},
	} {
		err := program.Run(t.Context(), tc.args, &bytes.Buffer{}, &bytes.Buffer{})
		var usage *command.UsageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want a usage error with %q", tc.args, err, tc.want)
		}
	}
}
