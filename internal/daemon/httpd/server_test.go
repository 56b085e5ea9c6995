package httpd

import (
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

func serve(t *testing.T, c Config) *Server {
	t.Helper()
	c.Logger = slog.New(slog.DiscardHandler)
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	s, err := Listen(anyPort, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func get(t *testing.T, s *Server, path string) (int, string) {
	t.Helper()
	res, err := http.Get("http://" + s.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestReadyOnlyWhenNothingIsWaitedForHealthyAlways(t *testing.T) {
	var waiting atomic.Value
	waiting.Store("a lease for 172.31.9.11")
	s := serve(t, Config{Waiting: func() string { return waiting.Load().(string) }})

	if code, body := get(t, s, "/readyz"); code != 503 || body != "waiting for a lease for 172.31.9.11\n" {
		t.Errorf("/readyz while waiting: %d %q", code, body)
	}
	if code, _ := get(t, s, "/healthz"); code != 200 {
		t.Errorf("/healthz while waiting: %d", code)
	}
	waiting.Store("")
	if code, body := get(t, s, "/readyz"); code != 200 || body != "ok\n" {
		t.Errorf("/readyz: %d %q", code, body)
	}
}

func TestMetricsAreServed(t *testing.T) {
	r := prometheus.NewRegistry()
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "twill_peers", Help: "Peers."})
	g.Set(3)
	r.MustRegister(g)
	s := serve(t, Config{Metrics: r})
	if code, body := get(t, s, "/metrics"); code != 200 || !strings.Contains(body, "\ntwill_peers 3\n") {
		t.Errorf("/metrics: %d %q", code, body)
	}
}

// fakeUI is a page of one word.
type fakeUI struct{ http.Handler }

func (fakeUI) Style(w http.ResponseWriter, _ *http.Request)  { io.WriteString(w, "style") }
func (fakeUI) Script(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "script") }

func TestPageForBrowsersIsServedIfThereIsOne(t *testing.T) {
	without := serve(t, Config{})
	with := serve(t, Config{UI: fakeUI{http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		io.WriteString(w, "page")
	})}})
	for path, want := range map[string]string{"/": "page", "/ui/": "page", "/ui/style.css": "style", "/ui/script.js": "script"} {
		if code, body := get(t, with, path); code != http.StatusOK || body != want {
			t.Errorf("%s: %d %q, want %q", path, code, body, want)
		}
		if code, _ := get(t, without, path); code != http.StatusNotFound {
			t.Errorf("%s without a page: %d", path, code)
		}
	}
	res, err := http.Get("http://" + with.Addr().String() + "/ui/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.Header.Get("Content-Security-Policy") == "" {
		t.Error("the headers of the page are lost")
	}
	res, err = http.Post("http://"+with.Addr().String()+"/ui/", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", res.Status)
	}
}

// The cause stays in the error, and the address is in it once.
func TestPortInUseIsNamed(t *testing.T) {
	s := serve(t, Config{})
	_, err := Listen(s.Addr(), Config{Logger: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "address already in use") ||
		strings.Count(err.Error(), s.Addr().String()) != 1 || !strings.Contains(err.Error(), "--healthz-port") {
		t.Errorf("got %v", err)
	}
}

func TestAddressOfNoInterfaceIsNamed(t *testing.T) {
	_, err := Listen(netip.MustParseAddrPort("192.0.2.1:0"), Config{Logger: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, unix.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "cannot assign requested address") || !strings.Contains(err.Error(), "--healthz-ip") {
		t.Errorf("got %v", err)
	}
}

// A link-local address without an interface is invalid, or IPv6 is off.
func TestAnyOtherCauseStaysInTheError(t *testing.T) {
	_, err := Listen(netip.MustParseAddrPort("[fe80::1]:0"), Config{Logger: slog.New(slog.DiscardHandler)})
	var errno unix.Errno
	if !errors.As(err, &errno) || !strings.Contains(err.Error(), "listen on [fe80::1]:0 for health and metrics: ") {
		t.Errorf("got %v", err)
	}
}

func TestCloseDoesNotWaitForRequestsUnderWay(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	s := serve(t, Config{Waiting: func() string {
		close(entered)
		<-release
		return ""
	}})
	go http.Get("http://" + s.Addr().String() + "/readyz")
	<-entered
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	// The request ends when the test does.
	testkit.Must(t, testkit.Receive(t, "Close returns", closed))
}

// promhttp is the oracle: /metrics is what it would serve to a client without wishes.
func TestMetricsAreWhatPromhttpServes(t *testing.T) {
	r := prometheus.NewRegistry()
	sizes := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "twill_sizes", Help: "Sizes, of \\ and\nlines.", Buckets: []float64{1, 2.5}})
	sizes.Observe(2)
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "twill_info", Help: "Labels."}, []string{"reason"})
	info.WithLabelValues("a \"quoted\" one, \\ and\na line").Set(1e9)
	info.WithLabelValues("").Set(math.Inf(1))
	r.MustRegister(sizes, info, prometheus.NewCounter(prometheus.CounterOpts{Name: "twill_packets_total", Help: "Packets."}))
	s := serve(t, Config{Metrics: r})

	res, err := http.Get("http://" + s.Addr().String() + "/metrics")
	testkit.Must(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	testkit.Must(t, err)
	want := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(want, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if string(body) != want.Body.String() {
		t.Errorf("got\n%s\nwant\n%s", body, want.Body)
	}
	if got, want := res.Header.Get("Content-Type"), want.Header().Get("Content-Type"); got != want {
		t.Errorf("Content-Type %q, want %q", got, want)
	}
}

// brokenCollector fails at each scrape.
type brokenCollector struct{ desc *prometheus.Desc }

func (c brokenCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }
func (c brokenCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(c.desc, errors.New("the counter is gone"))
}

func TestMetricsThatCannotBeCollectedAreAnError(t *testing.T) {
	r := prometheus.NewRegistry()
	r.MustRegister(brokenCollector{prometheus.NewDesc("twill_broken", "Broken.", nil, nil)})
	if code, body := get(t, serve(t, Config{Metrics: r}), "/metrics"); code != http.StatusInternalServerError || !strings.Contains(body, "the counter is gone") {
		t.Errorf("got %d %q", code, body)
	}
}
