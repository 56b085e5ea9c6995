package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// A data plane whose offloads are silently off works, but at a tenth of its speed.
//
//	pod-a ── flannel0 ── socket ────────── socket ── flannel0 ── pod-b
//	       TSO        GSO                GRO      coalescing
func TestBulkTCPTravelsInTrains(t *testing.T) {
	t.Parallel()
	for _, wire := range wires {
		t.Run(string(wire), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: offloadEngine, flags: []string{metricsFlag}, Options: netlab.Options{Wire: wire}})
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				before := l.arrivals(1)
				var mean uint64 // bytes in a frame
				l.expectTrains(t, everywhere, func() error {
					return streams{flows: 4, up: 64 << 20}.run(l.pod(0), l.pod(1), addr)
				}, func() bool {
					now := l.arrivals(1)
					mean = (now.RxBytes - before.RxBytes) / (now.RxPackets - before.RxPackets)
					return wire == netlab.MTU || mean > frameSize
				})
				// What GRO joined must have been separate on the wire, otherwise the test
				// tests another wire.
				if wire == netlab.MTU && mean > frameSize {
					t.Errorf("frames of %d bytes crossed a wire for %d", mean, frameSize)
				}
			})
			for i, d := range l.daemons {
				tx, rx := directions(d.status())
				if c := []status.Direction{tx, rx}[i]; c.Packets <= c.Datagrams || c.Packets <= c.TunCalls {
					t.Errorf("status of %s shows no trains: %+v", d.ns, c)
				}
			}
			// A super-packet has up to 64 KiB, and so has a message.
			if tx, _ := directions(l.daemons[0].status()); tx.Datagrams > 2*tx.TunCalls {
				t.Errorf("host a cuts what TSO joins: %+v", tx)
			}
		})
	}
}

// everywhere is what is expected of the four places while all offloads are in
// force.
var everywhere = [len(places{})]size{trains, trains, trains, trains}

// frameSize is that of the largest frame that carries a packet of the underlay's
// MTU: 1500 bytes behind an Ethernet header.
const frameSize = 1500 + 14

// arrivals are the counters of the interface of host number i on the wire.
func (l *lab) arrivals(i int) *netlink.LinkStatistics {
	l.t.Helper()
	return l.link(i, netlab.UnderlayLink).Attrs().Statistics
}

// A pod that sends with UDP_SEGMENT, as QUIC does.
//
//	pod-a ── flannel0 ── socket ────────── socket ── flannel0 ── pod-b
//	       USO        GSO                GRO      coalescing
func TestBulkUDPTravelsInTrains(t *testing.T) {
	t.Parallel()
	for _, wire := range wires {
		t.Run(string(wire), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: offloadEngine, flags: []string{metricsFlag}, Options: netlab.Options{Wire: wire}})
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				l.expectTrains(t, everywhere, func() error { return segmented(l.pod(0), l.pod(1), addr) }, always)
			})
		})
	}
}

// always sets no further condition.
func always() bool { return true }

// segmented sends trains of datagrams in one send each, and returns an error
// unless every datagram of a train arrives once, as it was cut. Their order is not
// checked: a train in flight while the node changes its source port may be overtaken.
func segmented(from, to *netlab.Pod, addr netip.Addr) error {
	const trains, count, size = 200, 32, 1000
	if err := acquaint(from, addr); err != nil {
		return err
	}
	server, err := listenUDP(to.NS, netip.AddrPortFrom(addr, 0))
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := dialUDP(from.NS, addrPort(server))
	if err != nil {
		return err
	}
	defer client.Close()
	if err := setInt(client, unix.SOL_UDP, unix.UDP_SEGMENT, size); err != nil {
		return err
	}
	data := content(1, trains*count*size)
	train, got := make([]byte, count*size), make([]byte, size+1)
	for i := range trains {
		_, _ = io.ReadFull(data, train)
		if _, err := client.Write(train); err != nil {
			return fmt.Errorf("train %d: %w", i, err)
		}
		missing := slices.Collect(slices.Chunk(train, size))
		for len(missing) > 0 {
			_ = server.SetReadDeadline(time.Now().Add(testkit.Patience))
			n, err := server.Read(got)
			if err != nil {
				return fmt.Errorf("train %d: %d datagrams are missing: %w", i, len(missing), err)
			}
			at := slices.IndexFunc(missing, func(sent []byte) bool { return bytes.Equal(sent, got[:n]) })
			if at < 0 {
				return fmt.Errorf("train %d: a datagram of %d bytes is not one of the missing ones", i, n)
			}
			missing = slices.Delete(missing, at, at+1)
		}
	}
	return nil
}

func TestEachKillSwitchTurnsOffItsOwnOffload(t *testing.T) {
	t.Parallel()
	for _, s := range []struct {
		flag string
		off  []string // no longer in force
		want [len(places{})]size
	}{
		{"--udp-gro=on", nil, everywhere},
		// Without the virtio-net header nothing can be joined either, and there is
		// one queue.
		{"--tun-offload=off", []string{"tun-offload", "tun-gro", "tun-gro-udp", "source-ports", "brief-batches"}, [...]size{single, trains, trains, single}},
		{"--tun-gro=off", []string{"tun-gro"}, [...]size{trains, trains, trains, single}},
		{"--tun-gro-udp=off", []string{"tun-gro-udp"}, everywhere}, // for TCP
		// Over veth, GRO hardly ever joins packets that were not sent as one.
		{"--udp-gso=off", []string{"udp-gso"}, [...]size{trains, single, either, trains}},
		{"--udp-gro=off", []string{"udp-gro"}, [...]size{trains, trains, single, trains}},
		{"--source-ports=off", []string{"source-ports", "brief-batches"}, everywhere}, // one queue for a thread
		{"--busy-poll=off", []string{"busy-poll"}, everywhere},
		{"--brief-batches=off", []string{"brief-batches"}, everywhere},
		{"--bulk-queue=on", nil, everywhere},
	} {
		t.Run(s.flag, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: engine{"auto", [][]string{{s.flag, metricsFlag}}}, Options: netlab.Options{Wire: netlab.MTU}})
			for _, d := range l.daemons {
				for _, o := range d.status().Dataplane.Offloads {
					want := !slices.Contains(s.off, o.Name)
					if o.Name == "bulk-queue" { // off by default
						want = s.flag == "--bulk-queue=on"
					}
					if o.InForce != want {
						t.Errorf("%s: %s in force: %t (%s), want %t", d.ns, o.Name, o.InForce, o.Why, want)
					}
				}
			}
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				l.expectTrains(t, s.want, func() error {
					return streams{flows: 4, up: 32 << 20, down: 1 << 20}.run(l.pod(0), l.pod(1), addr)
				}, always)
				if err := segmented(l.pod(0), l.pod(1), addr); err != nil {
					t.Errorf("UDP: %v", err)
				}
			})
		})
	}
}

// TestFlowsOfOnePeerComeThroughSeveralSockets: if the kernel's hash
// were random, 64 flows would leave one of four queues empty once in 20 million runs.
func TestFlowsOfOnePeerComeThroughSeveralSockets(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on", "off"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: offloadEngine, flags: []string{metricsFlag, "--thread-pairs=1", "--source-ports=" + mode}})
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				flows := datagrams{flows: 64, count: 20, window: 2, sizes: []int{64, 1200}}
				if err := flows.run(l.pod(0), l.pod(1), addr); err != nil {
					t.Fatal(err)
				}
			})
			text, used := l.metrics(1), 0
			for i := range 4 {
				shard := fmt.Sprintf(`shard="%d"`, i)
				if strings.Contains(text, "twill_packets_total{direction=\"rx\","+shard) &&
					sum(t, text, "twill_packets_total", `direction="rx"`, shard) > 0 {
					used++
				}
			}
			if want := map[string]int{"on": 4, "off": 1}[mode]; used != want {
				t.Errorf("packets came through %d sockets, want %d", used, want)
			}
		})
	}
}

func TestBusyPollFindsPacketsThatComeOneByOne(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on", "off"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{flags: []string{metricsFlag, "--busy-poll=" + mode}})
			requests := datagrams{flows: 1, count: 3000, window: 1, sizes: []int{64}}
			found := 0.0
			testkit.Eventually(t, "requests are answered, and packets found without a sleep where that is on", func() bool {
				testkit.Must(t, requests.run(l.pod(0), l.pod(1), l.pod(1).Addr))
				found = sum(t, l.metrics(1), "twill_busy_poll_hits_total")
				return mode == "off" || found > 0
			})
			if mode == "off" && found > 0 {
				t.Errorf("%.0f packets found by polling again", found)
			}
		})
	}
}

// TestBulkTransferHasBriefBatchesBesideRequests: some of the requests' 16
// connections are in another queue than the stream.
func TestBulkTransferHasBriefBatchesBesideRequests(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on", "off"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: offloadEngine, flags: []string{metricsFlag, "--thread-pairs=1", "--brief-batches=" + mode}})
			brief := 0.0
			testkit.Eventually(t, "a stream and requests arrive, in brief batches where these are on", func() bool {
				stream := make(chan error, 1)
				go func() {
					stream <- streams{flows: 1, up: 64 << 20}.run(l.pod(0), l.pod(1), l.pod(1).Addr)
				}()
				for streaming := true; streaming; {
					select {
					case err := <-stream:
						testkit.Must(t, err)
						streaming = false
					default:
						requests := streams{flows: 16, up: 16 << 10, down: 16 << 10}
						testkit.Must(t, requests.run(l.pod(0), l.pod(1), l.pod(1).Addr))
					}
				}
				brief = sum(t, l.metrics(0), "twill_brief_batches_total") + sum(t, l.metrics(1), "twill_brief_batches_total")
				return mode == "off" || brief > 0
			})
			if mode == "off" && brief > 0 {
				t.Errorf("%.0f batches are brief", brief)
			}
		})
	}
}

// TestBulkTransferHasAQueueOfItsOwn: the kernel's hash alone would put eight streams into
// the last of four queues once in 65,536 times.
func TestBulkTransferHasAQueueOfItsOwn(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on", "off"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: offloadEngine, flags: []string{"--thread-pairs=1", "--bulk-queue=" + mode}})
			sent := func(queue int) uint64 { return l.daemons[0].status().Shards[queue].TX.Bytes }
			const enough = 4 << 20
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				last := 0
				for range 8 {
					var before [4]uint64
					for i := range before {
						before[i] = sent(i)
					}
					ctx, stop := context.WithCancel(t.Context())
					stopped := make(chan error, 1)
					go func() {
						stopped <- streams{flows: 1, up: 1 << 40, until: ctx}.run(l.pod(0), l.pod(1), addr)
					}()
					testkit.Eventually(t, "a stream goes through the last queue, or through any if that is off", func() bool {
						if sent(3)-before[3] > enough {
							last++
							return true
						}
						return mode == "off" && slices.ContainsFunc([]int{0, 1, 2}, func(i int) bool { return sent(i)-before[i] > enough })
					})
					stop()
					<-stopped // with the error that it was stopped
				}
				if mode == "off" && last == 8 {
					t.Error("all streams go through the last queue")
				}
			})
		})
	}
}

// metrics fetches /metrics of host number i.
func (l *lab) metrics(i int) string {
	l.t.Helper()
	ns := l.Hosts[i].NS
	transport := &http.Transport{DialContext: ns.Dial}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: testkit.Patience}).Get("http://127.0.0.1:9100/metrics")
	if err != nil {
		l.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		l.t.Fatalf("/metrics of %s: %s, %v", ns, res.Status, err)
	}
	return string(text)
}

// sum adds up the samples of a metric that have all of these labels.
func sum(t testing.TB, text, metric string, labels ...string) (total float64) {
	t.Helper()
	found := false
lines:
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, metric+"{") {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(line, label) {
				continue lines
			}
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		total, found = total+value, true
	}
	if !found {
		t.Errorf("no sample of %s with %s", metric, labels)
	}
	return total
}
