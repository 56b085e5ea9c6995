// Package webui implements the page of --ui, which shows the cluster in a browser as one
// node sees it. It is read-only and self-contained: no file, font or script comes from
// elsewhere.
//
// The page is open to every host and pod that reaches the health port. The cost of requests
// is bounded: package httpd renders the page once for all requests that arrive together, a
// table has at most maxPeers rows, and the history has a fixed length.
package webui

import (
	"bytes"
	_ "embed"
	"net/http"
	"time"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
)

// Config provides what a UI shows. The functions must be safe for concurrent use.
type Config struct {
	Host     string // name of this host
	Document func() status.Document
	Traffic  func() []metrics.BackendTraffic
	// Examination returns the last result of twill doctor, or nil if there is none yet.
	// It does not wait for the next one.
	Examination func() *Examination
}

// Examination is the result of twill doctor.
type Examination struct {
	At       time.Time `json:"-"`
	Problem  string    `json:"-"` // why there are no findings
	Findings []Finding `json:"findings"`
}

// Finding is one of doctor's findings.
type Finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"` // ok, warn or bad
	Text   string `json:"text"`
	Remedy string `json:"remedy"`
}

// UI serves the page.
type UI struct {
	cfg     Config
	history history
	end     chan struct{}
	ended   chan struct{}
}

//go:embed style.css
var style []byte

//go:embed script.js
var script []byte

// New returns a UI that keeps a history of the traffic until Close.
func New(cfg Config) *UI {
	u := &UI{cfg: cfg, end: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(u.ended)
		u.sample()
	}()
	return u
}

// Close ends the history. Requests are still answered.
func (u *UI) Close() {
	close(u.end)
	<-u.ended
}

// sample reads the traffic at an interval.
func (u *UI) sample() {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	u.history.add(time.Now(), u.cfg.Traffic())
	for {
		select {
		case now := <-ticks.C:
			u.history.add(now, u.cfg.Traffic())
		case <-u.end:
			return
		}
	}
}

// securityHeaders let the page load its own style and script, and nothing else.
var securityHeaders = map[string]string{
	"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	"X-Content-Type-Options": "nosniff",
	"Referrer-Policy":        "no-referrer",
	"Cache-Control":          "no-store",
}

// ServeHTTP serves the page.
func (u *UI) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	d := u.cfg.Document()
	p := page{Document: &d, host: u.cfg.Host, traffic: u.history.series(), doctor: u.cfg.Examination()}
	var b bytes.Buffer
	p.write(&writer{&b})
	send(w, "text/html; charset=utf-8", b.Bytes())
}

// Style serves the style sheet of the page.
func (u *UI) Style(w http.ResponseWriter, _ *http.Request) {
	send(w, "text/css; charset=utf-8", style)
}

// Script serves the script of the page.
func (u *UI) Script(w http.ResponseWriter, _ *http.Request) {
	send(w, "text/javascript; charset=utf-8", script)
}

func send(w http.ResponseWriter, kind string, text []byte) {
	for key, value := range securityHeaders {
		w.Header().Set(key, value)
	}
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(text) // fails only if the client has gone
}
