package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/pcapng"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/internal/version"
	"github.com/twillnet/twill/metrics"
)

// capturePeriod is how often captured packets are passed on.
const capturePeriod = 50 * time.Millisecond

// errCaptureFull ends a capture that has reached a limit.
var errCaptureFull = errors.New("limit reached")

// capture writes packets of pods to w, in the pcapng format, until a limit of o is
// reached or ctx is done. It fails before the first byte if another capture is in progress.
func (d *daemon) capture(ctx context.Context, o status.CaptureOptions, w io.Writer) (sum status.CaptureSummary, err error) {
	c, err := d.taps.Start(fastpath.CaptureOptions{Peers: o.Peers, Pods: o.Pods, Drops: o.Drops, Snaplen: o.Snaplen})
	if err != nil {
		return sum, err
	}
	defer c.Stop()
	d.log.Info("capture started", logging.KeyDuration, o.For)
	defer func() { d.log.Info("capture ended", logging.KeyWhy, sum.Ended) }()

	out := bufio.NewWriterSize(w, 1<<16)
	x := &captureFile{options: o, summary: &sum, out: out}
	if x.file, err = pcapng.NewWriter(out, "twilld "+version.String(), pcapng.Interface{
		Name: d.options.tunName, Description: "packets of pods, as they are in the datagrams of the udp backend", Snaplen: o.Snaplen,
	}); err != nil {
		return sum, err
	}
	if err = out.Flush(); err == nil {
		err = x.follow(ctx, c)
	}
	if err != nil {
		sum.Ended = err.Error()
		return sum, err
	}
	sum.Lost = c.Lost()
	return sum, errors.Join(x.file.Statistics(time.Now(), sum.Captured, sum.Lost), out.Flush())
}

// captureFile writes a capture to a client.
type captureFile struct {
	options status.CaptureOptions
	summary *status.CaptureSummary
	file    *pcapng.Writer
	out     *bufio.Writer
}

// follow passes packets on until the end of the capture.
func (x *captureFile) follow(ctx context.Context, c *fastpath.Capture) error {
	ticks := time.NewTicker(capturePeriod)
	defer ticks.Stop()
	over := time.NewTimer(x.options.For)
	defer over.Stop()
	for ended := false; !ended; {
		select {
		case <-ticks.C:
		case <-over.C:
			ended, x.summary.Ended = true, "after "+x.options.For.String()
		case <-ctx.Done():
			ended, x.summary.Ended = true, "by the user"
		}
		if ended {
			c.Stop() // packets seen before are still passed on
		}
		err := c.Drain(x.packet)
		if errors.Is(err, errCaptureFull) {
			ended, err = true, nil
		}
		if err == nil && x.out.Buffered() > 0 {
			err = x.out.Flush()
		}
		if err != nil {
			return fmt.Errorf("write capture: %w", err)
		}
	}
	return nil
}

// packet writes a packet.
func (x *captureFile) packet(p *fastpath.CapturedPacket) error {
	n := pcapng.Packet{
		Time: p.Time, Direction: pcapng.Inbound, Length: p.Length, Data: p.Data, Lost: uint64(p.Lost), Comment: captureComment(p),
	}
	if p.Out {
		n.Direction = pcapng.Outbound
	}
	if err := x.file.Packet(&n); err != nil {
		return err
	}
	x.summary.Captured++
	switch o := &x.options; {
	case o.Packets > 0 && x.summary.Captured >= o.Packets:
		x.summary.Ended = fmt.Sprintf("after %d packets", o.Packets)
	case o.Bytes > 0 && x.file.Size() >= o.Bytes:
		x.summary.Ended = fmt.Sprintf("after %d bytes", x.file.Size())
	default:
		return nil
	}
	return errCaptureFull
}

// captureComment returns what the packet itself does not show.
func captureComment(p *fastpath.CapturedPacket) (text string) {
	dropped := p.Drop < metrics.NumDrops
	switch {
	case p.Outer.IsValid() && p.Out:
		text = fmt.Sprintf("to %s", p.Outer)
	case p.Outer.IsValid():
		text = fmt.Sprintf("from %s", p.Outer)
	case dropped:
		text = "of a pod of this node"
	default:
		text = "ICMP error by twilld"
	}
	if dropped {
		text += fmt.Sprintf(", dropped: %s (%s)", p.Drop, p.Drop.Meaning())
	}
	return text
}
