// Package httpd serves the health checks and metrics of a node over HTTP:
//
//	/healthz  200 as long as the process answers
//	/readyz   200 when the node is ready for pods, else 503 and what it is waiting for
//	/metrics  Prometheus
//	/ui/      the page for browsers, if there is one
//
// The port is open to every host and pod that reaches it, so the resources that clients
// can use are bounded, see package httplimit.
package httpd

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/httplimit"
)

// Config configures a Server.
type Config struct {
	// Waiting returns what the daemon is waiting for, or "" when it is ready. It
	// is called from several goroutines.
	Waiting func() string
	Metrics prometheus.Gatherer
	// UI is the page for browsers; nil: there is none.
	UI     UI
	Logger *slog.Logger
}

// UI serves a page for browsers and the files that it loads.
type UI interface {
	http.Handler
	Style(http.ResponseWriter, *http.Request)
	Script(http.ResponseWriter, *http.Request)
}

// limits bounds the connections, since the port is open to every pod. A connection
// takes about 30 KB, and 100 KB while the metrics are sent.
var limits = httplimit.Limits{Remote: 64, PerAddress: 8, Local: 16, Replace: true}

// Server is a listening server.
type Server struct {
	http *http.Server
	addr netip.AddrPort
	done chan struct{}
}

// Listen binds addr (port 0: any) and serves until Close.
func Listen(addr netip.AddrPort, c Config) (*Server, error) {
	l, err := net.Listen("tcp", addr.String())
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err // without the address, which the message already contains
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s for health and metrics: %w; stop the process that uses the port (a flanneld?), or choose another --healthz-port, or 0 for none", addr, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on %s for health and metrics: %w; no interface has this address, so correct --healthz-ip", addr, err)
	case err != nil:
		return nil, fmt.Errorf("listen on %s for health and metrics: %w", addr, err)
	}
	s := &Server{
		http: httplimit.Server(handler(c), c.Logger),
		addr: l.Addr().(*net.TCPAddr).AddrPort(),
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(httplimit.Listener(l, limits)) // ends with Close
	}()
	return s, nil
}

func handler(c Config) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if what := c.Waiting(); what != "" {
			http.Error(w, "waiting for "+what, http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	})
	mux.Handle("GET /metrics", &page{render: exposition(c.Metrics)})
	if c.UI != nil {
		mux.Handle("GET /ui/{$}", &page{render: c.UI})
		mux.HandleFunc("GET /ui/style.css", c.UI.Style)
		mux.HandleFunc("GET /ui/script.js", c.UI.Script)
		mux.Handle("GET /{$}", http.RedirectHandler("/ui/", http.StatusFound))
	}
	return mux
}

// exposition serves metrics in Prometheus's text format. The handler of promhttp would do
// the same, but it links the other formats that a client may request, and compression,
// which is not needed since page renders once for all clients.
func exposition(metrics prometheus.Gatherer) http.Handler {
	format := expfmt.NewFormat(expfmt.TypeTextPlain).WithEscapingScheme(model.UnderscoreEscaping)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		families, err := metrics.Gather()
		if err != nil {
			http.Error(w, "collect metrics: "+err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", string(format))
		for _, f := range families {
			_, _ = expfmt.MetricFamilyToText(w, f) // w is the buffer of a page
		}
	})
}

// Addr returns the bound address.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Close stops the server and aborts requests in progress: an aborted scrape is
// repeated, but a daemon that stops late is killed.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}
