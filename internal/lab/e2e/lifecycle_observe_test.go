package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// get asks the health and metrics server of host a from host b.
func (l *lab) get(path string) (code int, body string, err error) {
	transport := &http.Transport{DialContext: l.Hosts[1].NS.Dial}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: testkit.Patience}
	res, err := client.Get(fmt.Sprintf("http://%s:8081%s", l.Hosts[0].Addr, path))
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	return res.StatusCode, string(raw), err
}

// host a ──────────── host b
//
//	/readyz             asks
func TestReadyzSaysWhenPodsCanTalk(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	d := l.daemons[0]
	d.args = append(d.args, "--healthz-port=8081", "--udp-gso=auto")
	// The self-test of UDP GSO waits for datagrams that do not arrive.
	stifleLoopback(t, d.ns)
	d.start()
	testkit.Eventually(t, "/readyz returns 503 and names what the daemon waits for", func() bool {
		_, missing := os.Stat(d.subnetFile)
		code, body, err := l.get("/readyz")
		unready := err == nil && code == http.StatusServiceUnavailable
		if unready && missing == nil {
			t.Error("subnet.env is written before pods can talk")
		}
		return unready && body == "waiting for the data plane\n"
	})
	if code, body, err := l.get("/healthz"); err != nil || code != http.StatusOK {
		t.Errorf("/healthz: %d %q %v, want 200 from the first moment", code, body, err)
	}
	d.waitReady()
	if code, body, err := l.get("/readyz"); err != nil || code != http.StatusOK {
		t.Errorf("/readyz: %d %q %v, want 200", code, body, err)
	}
	d.stop(syscall.SIGTERM)
	if code, _, err := l.get("/healthz"); err == nil {
		t.Errorf("/healthz returns %d after the end", code)
	}
}

func TestServiceManagerIsNotifiedWhenPodsCanTalkAndOfTheEnd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(scratchDir(t), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	testkit.Must(t, err)
	defer manager.Close()
	next := func() string {
		t.Helper()
		buf := make([]byte, 100)
		testkit.Must(t, manager.SetReadDeadline(time.Now().Add(testkit.Patience)))
		for {
			n, err := manager.Read(buf)
			testkit.Must(t, err)
			if state := string(buf[:n]); !strings.HasPrefix(state, "FDSTORE=1\n") { // descriptors to keep
				return state
			}
		}
	}
	l := newLab(t, labOptions{idle: true})
	d := l.daemons[0]
	d.wrap = []string{"env", "NOTIFY_SOCKET=" + path}
	d.start()
	if got := next(); got != "READY=1\nSTATUS=ready" {
		t.Errorf("first it reports %q", got)
	}
	if _, err := os.Stat(d.subnetFile); err != nil {
		t.Errorf("it reports that it is ready, but: %v", err)
	}
	testkit.Must(t, d.cmd.Process.Signal(syscall.SIGTERM))
	if got := next(); got != "STOPPING=1" {
		t.Errorf("at the end it reports %q", got)
	}
	d.wait()
}

func TestServiceManagerThatDoesNotListenDoesNotStopTheDaemon(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	d := l.daemons[0]
	d.wrap = []string{"env", "NOTIFY_SOCKET=" + filepath.Join(scratchDir(t), "nobody")}
	d.start()
	d.waitReady()
	testkit.Eventually(t, "the log says so", func() bool { return strings.Contains(d.stderr.String(), "service manager not notified") })
}

// host a ──────────── host b
//
//	/metrics            scrapes
func TestMetricsOfARunningDaemonScrapeAndLint(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{flags: []string{"--healthz-port=8081"}})
	testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 1472))
	code, text, err := l.get("/metrics")
	if err != nil || code != http.StatusOK {
		t.Fatalf("/metrics: %d %v", code, err)
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	testkit.Must(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, want := range []string{
		"twill_ready 1\n", `twill_waiting{reason="lease"} 0`, "twill_lease_watch_up 1\n",
		"twill_peers 1\n", "twill_leases 2\n", "twill_lease_source_ok 1\n",
		`twill_device_info{device="flannel0",kind="offload",reason=`,
		`twill_offload_enabled{offload="tun-offload"} 1`, `twill_offload_enabled{offload="udp-gso"} 1`,
		`twill_packets_total{direction="tx",shard="0"} `, `twill_dropped_packets_total{direction="rx",reason="spoofed_source",shard="0"} 0`,
		"go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	replace(t, l.leaseFile, "{")
	testkit.Eventually(t, "the gauge shows that the lease file is refused", func() bool {
		_, text, err := l.get("/metrics")
		return err == nil && strings.Contains(text, "twill_lease_source_ok 0\n") && strings.Contains(text, "twill_leases 2\n")
	})
}

// host a ──────────── host b
//
//	/ui/                a browser
func TestPageForBrowsersShowsThePeersOfARunningDaemon(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill")) // doctor is run by the daemon
	l := newLab(t, labOptions{flags: []string{"--healthz-port=8081", "--ui"}})
	l.daemons[0].sh("sysctl -qw net.ipv4.ip_forward=0")
	testkit.Eventually(t, "the page shows what doctor finds, with the remedy", func() bool {
		_, text, err := l.get("/ui/")
		return err == nil && strings.Contains(text, "<td>bad<td>forwarding<td>net/ipv4/ip_forward is 0") &&
			strings.Contains(text, "<code>sysctl -w net/ipv4/ip_forward=1</code>")
	})
	l.daemons[0].sh("sysctl -qw net.ipv4.ip_forward=1")
	testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 1000))
	testkit.Eventually(t, "the page shows the other node with its traffic, and a line for it", func() bool {
		code, text, err := l.get("/ui/")
		return err == nil && code == http.StatusOK && strings.Contains(text, `<p class="state ok">ready`) &&
			strings.Contains(text, "<td>"+l.underlay(1).String()+"<td>"+l.Hosts[1].Subnet.String()) &&
			!strings.Contains(text, "<td>udp<td>0 B<td>0 B") && strings.Contains(text, `<polyline class="tx" points="`)
	})
	if code, _, err := l.get("/ui/script.js"); err != nil || code != http.StatusOK {
		t.Errorf("the script: %d, %v", code, err)
	}
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	/metrics    └── etcd, killed
//	flannel.1, deleted
//	rules, removed
func TestMetricsFollowTheStoreTheLeaseTheRulesAndTheDataPlane(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`})
	c.runTwill(metricsFlag, "--ip-masq", "--iptables-resync=1")
	shows := func(what string, wanted ...string) {
		t.Helper()
		text := ""
		if testkit.Within(testkit.Patience, func() bool {
			text = c.metrics(0)
			return !slices.ContainsFunc(wanted, func(line string) bool { return !strings.Contains(text, "\n"+line+"\n") })
		}) {
			return
		}
		t.Fatalf("%s: the metrics never had all of %q:\n%s", what, wanted, text)
	}
	shows("at first", "twill_ready 1", "twill_lease_source_up 1", "twill_lease_watch_up 1", "twill_rules_in_force 1",
		`twill_data_plane_restarts_total{cause="device"} 0`)

	text := c.metrics(0)
	if left := time.Until(time.Unix(int64(field(t, text, "twill_lease_expiry_timestamp_seconds")), 0)); left < time.Hour || left > 25*time.Hour {
		t.Errorf("the lease of a day ends in %s", left)
	}
	sent := func() float64 {
		return sum(t, c.metrics(0), "twill_backend_packets_total", `backend="vxlan"`, `direction="tx"`)
	}
	before := sent()
	testkit.Must(t, ping(c.pod(0), c.pod(1).Addr, 100))
	if after := sent(); after <= before {
		t.Errorf("%.0f packets by vxlan before a ping, %.0f after it", before, after)
	}

	link, err := c.nodes[0].NS.Netlink().LinkByName("flannel.1")
	testkit.Must(t, err)
	testkit.Must(t, c.nodes[0].NS.Netlink().LinkDel(link))
	shows("after its device was deleted", `twill_data_plane_restarts_total{cause="device"} 1`, "twill_ready 1")

	writes := field(t, c.metrics(0), "twill_rules_writes_total")
	testkit.Must(t, c.nodes[0].NS.Command(t.Context(), "iptables", "-t", "nat", "-F", "FLANNEL-POSTRTG").Run())
	testkit.Eventually(t, "the rules are written again, and counted", func() bool {
		return field(t, c.metrics(0), "twill_rules_writes_total") > writes
	})

	c.server.Kill()
	shows("without etcd", "twill_lease_source_up 0", "twill_lease_watch_up 0", "twill_ready 1")
	c.server.Restart(t)
	shows("with etcd again", "twill_lease_source_up 1", "twill_lease_watch_up 1")
}

// The operator's command reports what is wrong when no daemon answers.
func TestTwillStatusSaysWhyItCannotAsk(t *testing.T) {
	t.Parallel()
	ns := newLab(t, labOptions{idle: true}).Hosts[0].NS
	dir := scratchDir(t)
	stale := filepath.Join(dir, "stale.sock")
	s, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	testkit.Must(t, err)
	s.SetUnlinkOnClose(false)
	s.Close()
	for path, says := range map[string]string{
		filepath.Join(dir, "absent.sock"): "no such socket; is twilld running, and with this --socket?",
		stale:                             "no process listens on it; twilld was killed or is being restarted",
	} {
		out, err := ns.Command(context.Background(), built(t, "twill", "./cmd/twill"), "status", "--socket="+path).CombinedOutput()
		if err == nil || !strings.HasPrefix(string(out), "twill: ") || !strings.Contains(string(out), says) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %v %q; want one line that says %q", path, err, out, says)
		}
	}
}

// stifleLoopback lets almost nothing through on lo.
func stifleLoopback(t testing.TB, ns *netlab.Namespace) {
	t.Helper()
	const rate, size = 1000, 64 // bytes per second, bytes per packet
	lo, err := ns.Netlink().LinkByName("lo")
	testkit.Must(t, err)
	testkit.Must(t, ns.Netlink().QdiscAdd(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: lo.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Limit: size, Buffer: netlink.Xmittime(rate, size),
	}))
}
