package pcapng

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestAnotherReaderReadsAllThatIsWritten reads with gopacket, whose code is not ours.
func TestAnotherReaderReadsAllThatIsWritten(t *testing.T) {
	at := time.Unix(1_700_000_000, 123_456_789)
	packets := []Packet{
		{Time: at, Direction: Outbound, Length: 1400, Data: []byte("\x45 the beginning"), Comment: "to 192.0.2.2"},
		{Time: at.Add(1), Direction: Inbound, Length: 5, Data: []byte("\x60five"), Comment: "", Lost: 1 << 40},
		{Time: at.Add(time.Hour), Direction: Inbound, Comment: strings.Repeat("long ", 20000)}, // without a byte
	}
	var file bytes.Buffer
	w, err := NewWriter(&file, "twilld 1.2", Interface{Name: "flannel0", Description: "udp", Snaplen: 128})
	must(t, err)
	for i := range packets {
		must(t, w.Packet(&packets[i]))
	}
	must(t, w.Statistics(at, 3, 1<<40))
	if w.Size() != int64(file.Len()) {
		t.Errorf("Size says %d bytes of %d", w.Size(), file.Len())
	}

	r, err := pcapgo.NewNgReader(bytes.NewReader(file.Bytes()), pcapgo.NgReaderOptions{})
	must(t, err)
	if s := r.SectionInfo(); s.Application != "twilld 1.2" {
		t.Errorf("section %+v", s)
	}
	for i, want := range packets {
		data, info, opts, err := r.ReadPacketDataWithOptions()
		must(t, err)
		comment := ""
		if len(opts.Comments) > 0 {
			comment = opts.Comments[0]
		}
		if want.Comment = want.Comment[:min(len(want.Comment), 0xffff)]; comment != want.Comment {
			t.Errorf("packet %d: comment of %d bytes, want %d", i, len(comment), len(want.Comment))
		}
		if !bytes.Equal(data, want.Data) || !info.Timestamp.Equal(want.Time) || info.Length != want.Length || opts.Flags == nil ||
			int(opts.Flags.ToUint32()&3) != int(want.Direction) {
			t.Errorf("packet %d: %q, %+v, %+v", i, data, info, opts)
		}
		if lost := opts.DropCount; (lost == nil) != (want.Lost == 0) || lost != nil && *lost != want.Lost {
			t.Errorf("packet %d: lost %v, want %d", i, lost, want.Lost)
		}
	}
	if _, _, err := r.ReadPacketData(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last packet: %v", err)
	}
	i, err := r.Interface(0)
	must(t, err)
	if i.Name != "flannel0" || i.Description != "udp" || i.SnapLength != 128 || i.LinkType != layers.LinkTypeRaw ||
		i.Statistics.PacketsReceived != 3+1<<40 || i.Statistics.PacketsDropped != 1<<40 {
		t.Errorf("interface %+v", i)
	}
}

// refusing fails after a number of writes.
type refusing int

func (r *refusing) Write(b []byte) (int, error) {
	if *r--; *r < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(b), nil
}

func TestErrorsOfTheFileAreReturned(t *testing.T) {
	for n := range 4 {
		to := refusing(n)
		w, err := NewWriter(&to, "", Interface{})
		if err == nil {
			err = w.Packet(&Packet{})
		}
		if err == nil {
			err = w.Statistics(time.Now(), 1, 0)
		}
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("after %d writes: %v", n, err)
		}
	}
}
