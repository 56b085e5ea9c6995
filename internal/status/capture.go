package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/twillnet/twill/metrics"
)

// CaptureOptions select the packets of a capture, and end it. A packet must meet all
// conditions that are set, and the first limit that is reached ends the capture.
type CaptureOptions struct {
	Peers   []netip.Addr   // public addresses of the other node
	Pods    []netip.Prefix // source or destination
	Drops   []metrics.Drop // dropped for one of these reasons
	Snaplen int            // bytes of a packet that are kept; 0: all

	Packets uint64        // 0: any number
	Bytes   int64         // of the capture; 0: any number
	For     time.Duration // at most LongestCapture
}

// LongestCapture is the longest time that a capture may last.
const LongestCapture = 24 * time.Hour

// CaptureSummary summarizes a capture that has ended.
type CaptureSummary struct {
	Captured, Lost uint64 // packets; those lost arrived faster than they were read
	Ended          string // what ended it, in words
}

const (
	capturePath = "/capture"
	// captureWrite is how long a client may pause reading before the capture ends.
	captureWrite = time.Minute
	// captureEnd is how long a client waits for the end of a capture that it has ended.
	captureEnd = 10 * time.Second
)

// Trailers of the answer.
const (
	trailerCaptured = "Twill-Captured"
	trailerLost     = "Twill-Lost"
	trailerEnded    = "Twill-Ended"
)

// CaptureRoute returns the request by which a command captures packets. capture writes
// them to w until it has reached a limit or ctx is done; an error before the first byte
// refuses the capture. It must be safe for concurrent use.
//
// The capture lasts as long as the body of the request: it ends when the client ends the
// body or dies.
func CaptureRoute(capture func(ctx context.Context, o CaptureOptions, w io.Writer) (CaptureSummary, error)) Route {
	return Route{"POST " + capturePath, func(w http.ResponseWriter, r *http.Request) {
		o, err := parseCapture(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer := http.NewResponseController(w)
		if err := errors.Join(answer.EnableFullDuplex(), answer.SetReadDeadline(time.Time{})); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		go func() {
			_, _ = io.Copy(io.Discard, r.Body)
			cancel()
		}()
		w.Header().Set("Trailer", strings.Join([]string{trailerCaptured, trailerLost, trailerEnded}, ", "))
		w.Header().Set("Content-Type", "application/x-pcapng")
		out := &captureWriter{to: w, answer: answer}
		sum, err := capture(ctx, o, out)
		if err != nil && !out.begun {
			w.Header().Del("Trailer")
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		_ = answer.SetWriteDeadline(time.Now().Add(captureWrite))
		w.Header().Set(trailerCaptured, strconv.FormatUint(sum.Captured, 10))
		w.Header().Set(trailerLost, strconv.FormatUint(sum.Lost, 10))
		w.Header().Set(trailerEnded, sum.Ended)
	}}
}

// captureWriter passes each write on to the client at once.
type captureWriter struct {
	to     io.Writer
	answer *http.ResponseController
	begun  bool
}

func (c *captureWriter) Write(b []byte) (int, error) {
	c.begun = true
	if err := c.answer.SetWriteDeadline(time.Now().Add(captureWrite)); err != nil {
		return 0, err
	}
	n, err := c.to.Write(b)
	if err == nil {
		err = c.answer.Flush()
	}
	return n, err
}

// values returns o as the parameters of a request.
func (o *CaptureOptions) values() url.Values {
	v := url.Values{
		"snaplen": {strconv.Itoa(o.Snaplen)}, "packets": {strconv.FormatUint(o.Packets, 10)},
		"bytes": {strconv.FormatInt(o.Bytes, 10)}, "for": {o.For.String()},
	}
	for _, a := range o.Peers {
		v.Add("peer", a.String())
	}
	for _, p := range o.Pods {
		v.Add("pod", p.String())
	}
	for _, d := range o.Drops {
		v.Add("drop", d.String())
	}
	return v
}

// parseCapture is the inverse of values.
func parseCapture(v url.Values) (o CaptureOptions, err error) {
	for _, text := range v["peer"] {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return o, err
		}
		o.Peers = append(o.Peers, a)
	}
	for _, text := range v["pod"] {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return o, err
		}
		o.Pods = append(o.Pods, p)
	}
	for _, text := range v["drop"] {
		d, ok := metrics.DropNamed(text)
		if !ok {
			return o, fmt.Errorf("this version of twilld has no drop reason %q", text)
		}
		o.Drops = append(o.Drops, d)
	}
	var errs [4]error
	o.Snaplen, errs[0] = strconv.Atoi(v.Get("snaplen"))
	o.Packets, errs[1] = strconv.ParseUint(v.Get("packets"), 10, 64)
	o.Bytes, errs[2] = strconv.ParseInt(v.Get("bytes"), 10, 64)
	o.For, errs[3] = time.ParseDuration(v.Get("for"))
	if err = errors.Join(errs[:]...); err == nil && (o.Snaplen < 0 || o.Bytes < 0 || o.For <= 0 || o.For > LongestCapture) {
		err = fmt.Errorf("a limit is out of range: want a duration of up to %s and no negative numbers", LongestCapture)
	}
	return o, err
}

// Capture makes the daemon that listens on the unix socket path capture packets, and
// writes them to w in the pcapng format. It returns when a limit of o is reached or ctx
// is done; neither is an error.
func Capture(ctx context.Context, path string, o CaptureOptions, w io.Writer) (sum CaptureSummary, err error) {
	lasts, end := io.Pipe() // the body of the request
	defer end.Close()
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		_ = end.Close()
		time.AfterFunc(captureEnd, cancel)
	})()
	req, err := http.NewRequestWithContext(life, http.MethodPost, "http://twilld"+capturePath+"?"+o.values().Encode(), lasts)
	if err != nil {
		return sum, err
	}
	res, err := exchange(req, path)
	if err != nil {
		return sum, fmt.Errorf("request a capture from twilld on %s: %w", path, remedy(err))
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(res.Body, 1<<12))
		if res.StatusCode == http.StatusNotFound {
			why = []byte("it is an older version; restart it to run the same version as twill")
		}
		return sum, fmt.Errorf("twilld on %s refuses the capture: %s", path, strings.TrimSpace(string(why)))
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return sum, fmt.Errorf("capture cut short: %w", err)
	}
	sum.Captured, err = strconv.ParseUint(res.Trailer.Get(trailerCaptured), 10, 64)
	if err == nil {
		sum.Lost, err = strconv.ParseUint(res.Trailer.Get(trailerLost), 10, 64)
	}
	sum.Ended = res.Trailer.Get(trailerEnded)
	if err != nil {
		err = errors.New("capture cut short: twilld did not end it; see its log")
	}
	return sum, err
}
