package httpd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
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
func TestAPodCannotTakeTheServerFromTheNode(t *testing.T) {
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
	pipelined := strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 20)
	var stranger []net.Conn
	for range 500 {
		c, err := host.Pods[0].NS.Dial(t.Context(), "tcp", "10.5.1.1:8081")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, pipelined) // fails where it was refused
		stranger = append(stranger, c)
	}
	for _, from := range []*netlab.Namespace{host.NS, topo.Hosts[1].NS} { // the kubelet, Prometheus
		testkit.Eventually(t, fmt.Sprintf("%s is answered", from), func() bool {
			c, err := from.Dial(t.Context(), "tcp", host.Addr.String()+":8081")
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
	open := 0
	for _, c := range stranger {
		// What is open has an answer to read; what was refused has none.
		if _, err := c.Read(make([]byte, 1)); err == nil {
			open++
		}
	}
	if open != limits.PerAddress {
		t.Errorf("the pod has %d connections that are answered, want %d", open, limits.PerAddress)
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
