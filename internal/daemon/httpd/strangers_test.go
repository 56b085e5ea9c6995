package httpd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestMain(m *testing.M) { netlabtest.Main(m) }

// pod-a ── host a, with the port open on all addresses
//
//	500 connections, which read nothing
//	             40 connections of a process without rights, with half a request each
func TestStrangersCannotTakeTheServerFromTheNode(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	host := topo.Hosts[0]
	var rendered atomic.Int64
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "twill_renderings", Help: "Renderings."},
		func() float64 { return float64(rendered.Add(1)) }))
	var s *Server
	err := host.NS.Do(func() (err error) {
		s, err = Listen(netip.MustParseAddrPort("0.0.0.0:8081"), Config{
			Waiting: func() string { return "" }, Metrics: registry, Logger: slog.New(slog.DiscardHandler),
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	connect := func(from *netlab.Namespace, addr, send string) {
		t.Helper()
		c, err := from.Dial(t.Context(), "tcp", addr+":8081")
		testkit.Must(t, err)
		t.Cleanup(func() { c.Close() })
		_, _ = io.WriteString(c, send) // fails where it was refused
	}
	for range 500 {
		connect(host.Pods[0].NS, "10.5.1.1", strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 20))
	}
	for range 40 {
		connect(host.NS, "127.0.0.1", "GET /healthz HTTP/1.1\r\nHost:")
	}
	for _, by := range []struct {
		from *netlab.Namespace
		addr string
	}{{host.NS, "127.0.0.1"}, {host.NS, host.Addr.String()}, {topo.Hosts[1].NS, host.Addr.String()}} { // the kubelet, Prometheus
		testkit.Eventually(t, fmt.Sprintf("%s is answered by %s", by.from, by.addr), func() bool {
			c, err := by.from.Dial(t.Context(), "tcp", by.addr+":8081")
			if err != nil {
				return false
			}
			defer c.Close()
			if _, err := io.WriteString(c, "GET /readyz HTTP/1.0\r\n\r\n"); err != nil {
				return false
			}
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			return err == nil && res.StatusCode == http.StatusOK
		})
	}
}

// waiting is the context of a request that says when its handler waits.
type waiting struct {
	context.Context
	here chan struct{}
}

func (w waiting) Done() <-chan struct{} {
	w.here <- struct{}{}
	return w.Context.Done()
}

// TestRequestsShareARendering: their number does not make more of them, and an answer
// is not older than its request.
func TestRequestsShareARendering(t *testing.T) {
	var rendered atomic.Int64
	p := &page{render: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, rendered.Add(1)) })}
	for round := range 3 {
		here, answers := make(chan struct{}, 5), make(chan string, 5)
		p.work.Lock() // nothing is rendered until all wait
		for range 5 {
			go func() {
				w := httptest.NewRecorder()
				p.ServeHTTP(w, httptest.NewRequestWithContext(waiting{t.Context(), here}, http.MethodGet, "/metrics", nil))
				answers <- w.Body.String()
			}()
		}
		for range 5 {
			testkit.Receive(t, "a request waits", here, func() string { return "" })
		}
		p.work.Unlock()
		for range 5 {
			got := testkit.Receive(t, "a request is answered", answers, func() string { return "" })
			if want := fmt.Sprint(round + 1); got != want {
				t.Errorf("got rendering %s, want %s", got, want)
			}
		}
	}
}
