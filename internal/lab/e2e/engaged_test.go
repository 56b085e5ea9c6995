package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/status"
)

// trains are the mean numbers of packets that went through one call of the
// kernel, at each of the four places where an offload can be in force.
type trains struct {
	tunRead  float64 // TSO and USO: packets in a read of the sender's TUN device
	sent     float64 // GSO: packets in a message that the sender sends
	received float64 // GRO: packets in a message that the receiver receives
	tunWrite float64 // packets in a write of the receiver's TUN device
}

// trainsOf runs load, which sends from host a to host b, and measures.
func (l *lab) trainsOf(load func() error) trains {
	l.t.Helper()
	tx0, _ := directions(l.daemons[0].status())
	_, rx0 := directions(l.daemons[1].status())
	if err := load(); err != nil {
		l.t.Error(err)
	}
	tx1, _ := directions(l.daemons[0].status())
	_, rx1 := directions(l.daemons[1].status())
	mean := func(packets, calls uint64) float64 { return float64(packets) / float64(max(1, calls)) }
	return trains{
		tunRead:  mean(tx1.Packets-tx0.Packets, tx1.TunCalls-tx0.TunCalls),
		sent:     mean(tx1.Packets-tx0.Packets, tx1.Datagrams-tx0.Datagrams),
		received: mean(rx1.Packets-rx0.Packets, rx1.Datagrams-rx0.Datagrams),
		tunWrite: mean(rx1.Packets-rx0.Packets, rx1.TunCalls-rx0.TunCalls),
	}
}

// directions adds up the shards.
func directions(d *status.Document) (tx, rx status.Direction) {
	for _, s := range d.Shards {
		for _, sum := range []struct{ to, from *status.Direction }{{&tx, &s.TX}, {&rx, &s.RX}} {
			sum.to.Packets += sum.from.Packets
			sum.to.Datagrams += sum.from.Datagrams
			sum.to.TunCalls += sum.from.TunCalls
		}
	}
	return tx, rx
}

// engaged is the least mean that says that an offload does something. Without
// it the mean is 1, and with it some 30.
const engaged = 2

// A data plane whose offloads are silently off works, at a tenth of its speed.
//
//	pod-a ── flannel0 ── socket ────────── socket ── flannel0 ── pod-b
//	       TSO        GSO                GRO      coalescing
func TestBulkTCPTravelsInTrains(t *testing.T) {
	for _, wire := range wires {
		t.Run(string(wire), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: offloadEngine, Options: netlab.Options{Wire: wire}})
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				frames, packets := l.framesInto(1), l.txPackets(0)
				got := l.trainsOf(func() error {
					return streams{flows: 4, up: 64 << 20}.run(l.pod(0), l.pod(1), addr)
				})
				if got.tunRead < engaged || got.sent < engaged || got.received < engaged || got.tunWrite < engaged {
					t.Errorf("mean packets in a train: %+v, want at least %d everywhere", got, engaged)
				}
				// What GRO joined must have been apart on the wire, and the
				// other way round, else the test tests another wire.
				frames, packets = l.framesInto(1)-frames, l.txPackets(0)-packets
				// A few frames may be lost; trains would leave a thirtieth.
				if cut := frames > packets/engaged; cut != (wire == netlab.MTU) {
					t.Errorf("%d packets crossed the wire in %d frames", packets, frames)
				}
			})
		})
	}
}

// framesInto returns how many frames have come to host number i from the wire.
func (l *lab) framesInto(i int) uint64 {
	l.t.Helper()
	link, err := l.Hosts[i].NS.Netlink().LinkByName(netlab.UnderlayLink)
	if err != nil {
		l.t.Fatal(err)
	}
	return link.Attrs().Statistics.RxPackets
}

// A pod that sends with UDP_SEGMENT, as QUIC does.
//
//	pod-a ── flannel0 ── socket ────────── socket ── flannel0 ── pod-b
//	       USO        GSO                GRO      coalescing
func TestBulkUDPTravelsInTrains(t *testing.T) {
	for _, wire := range wires {
		t.Run(string(wire), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: offloadEngine, Options: netlab.Options{Wire: wire}})
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				got := l.trainsOf(func() error { return segmented(l.pod(0), l.pod(1), addr) })
				if got.tunRead < engaged || got.sent < engaged || got.received < engaged || got.tunWrite < engaged {
					t.Errorf("mean packets in a train: %+v, want at least %d everywhere", got, engaged)
				}
			})
		})
	}
}

// segmented sends trains of datagrams in one send each, and returns an error
// unless every datagram of a train arrives as it was cut.
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
		for want := range slices.Chunk(train, size) {
			_ = server.SetReadDeadline(time.Now().Add(patience))
			n, err := server.Read(got)
			if err != nil {
				return fmt.Errorf("train %d: %w", i, err)
			}
			if !bytes.Equal(got[:n], want) {
				return fmt.Errorf("train %d: a datagram of %d bytes is not the one sent", i, n)
			}
		}
	}
	return nil
}

// mean is what the mean of a kill switch's test must be.
type mean string

const (
	one    mean = "one packet"
	many   mean = "trains"
	either mean = "either"
)

func (m mean) holds(v float64) bool {
	switch m {
	case one:
		return v <= 1
	case many:
		return v >= engaged
	}
	return true
}

func TestEachKillSwitchTurnsOffItsOwnOffload(t *testing.T) {
	for _, s := range []struct {
		flag                        string
		off                         []string // not in force any more
		tunRead, sent, rx, tunWrite mean
	}{
		{"--udp-gro=on", nil, many, many, many, many},
		// Without the virtio-net header nothing can be joined either, and there is
		// one queue.
		{"--tun-offload=off", []string{"tun-offload", "tun-gro", "source-ports"}, one, many, many, one},
		{"--tun-gro=off", []string{"tun-gro"}, many, many, many, one},
		// Over veth GRO hardly ever joins what was not sent as one.
		{"--udp-gso=off", []string{"udp-gso"}, many, one, either, many},
		{"--udp-gro=off", []string{"udp-gro"}, many, many, one, many},
		{"--source-ports=off", []string{"source-ports"}, many, many, many, many},
		{"--busy-poll=off", []string{"busy-poll"}, many, many, many, many},
	} {
		t.Run(s.flag, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: engine{"auto", [][]string{{s.flag}}}, Options: netlab.Options{Wire: netlab.MTU}})
			for _, d := range l.daemons {
				for _, o := range d.status().Dataplane.Offloads {
					if want := !slices.Contains(s.off, o.Name); o.InForce != want {
						t.Errorf("%s: %s in force: %t (%s), want %t", d.ns, o.Name, o.InForce, o.Why, want)
					}
				}
			}
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				got := l.trainsOf(func() error {
					return streams{flows: 4, up: 32 << 20, down: 1 << 20}.run(l.pod(0), l.pod(1), addr)
				})
				if !s.tunRead.holds(got.tunRead) || !s.sent.holds(got.sent) || !s.rx.holds(got.received) || !s.tunWrite.holds(got.tunWrite) {
					t.Errorf("mean packets in a train: %+v, want trains: %+v", got, s)
				}
				if err := segmented(l.pod(0), l.pod(1), addr); err != nil {
					t.Errorf("UDP: %v", err)
				}
			})
		})
	}
}

func TestMetricsShowTrains(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{flags: []string{"--healthz-port=9100"}})
	if err := (streams{flows: 4, up: 64 << 20}).run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host              int
		metric, direction string
	}{
		{0, "twill_tun_batch_packets", "tx"}, {0, "twill_datagram_packets", "tx"},
		{1, "twill_datagram_packets", "rx"}, {1, "twill_tun_batch_packets", "rx"},
	} {
		text := l.metrics(c.host)
		all := sum(t, text, c.metric+"_count", `direction="`+c.direction+`"`)
		singles := sum(t, text, c.metric+"_bucket", `direction="`+c.direction+`"`, `le="1"`)
		if all-singles < 100 {
			t.Errorf("host %s: %s %s: %.0f batches, of which %.0f are single packets: where are the trains?",
				l.Hosts[c.host].Letter, c.metric, c.direction, all, singles)
		}
	}
}

// TestFlowsOfOnePeerComeThroughSeveralSockets: were the kernel's hash random,
// 64 flows would leave one of four queues empty once in 20 million runs.
func TestFlowsOfOnePeerComeThroughSeveralSockets(t *testing.T) {
	for _, mode := range []string{"on", "off"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: offloadEngine, flags: []string{"--healthz-port=9100", "--thread-pairs=1", "--source-ports=" + mode}})
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
	for _, mode := range []string{"on", "off"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{flags: []string{"--healthz-port=9100", "--busy-poll=" + mode}})
			requests := datagrams{flows: 1, count: 3000, window: 1, sizes: []int{64}}
			if err := requests.run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
				t.Fatal(err)
			}
			text := l.metrics(1)
			found := sum(t, text, "twill_busy_poll_hits_total")
			if want := mode == "on"; found > 0 != want {
				t.Errorf("%.0f packets found in 3000 requests, %.0f sleeps", found, sum(t, text, "twill_sleeps_total"))
			}
		})
	}
}

// metrics fetches /metrics of host number i.
func (l *lab) metrics(i int) string {
	l.t.Helper()
	ns := l.Hosts[i].NS
	transport := &http.Transport{DialContext: ns.Dial}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://127.0.0.1:9100/metrics")
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
