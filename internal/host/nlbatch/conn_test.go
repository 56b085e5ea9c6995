package nlbatch

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// explained is an answer with a text after the first n bytes of the request.
func explained(seq uint32, errno unix.Errno, flags uint16, request []byte, text string) []byte {
	b := refused(seq, errno)[:unix.SizeofNlMsghdr+sizeofErrno]
	binary.NativeEndian.PutUint16(b[6:], flags|unix.NLM_F_ACK_TLVS)
	b = append(b, request...)
	// Another attribute before it, NLMSGERR_ATTR_OFFS, and an odd length.
	b = binary.NativeEndian.AppendUint16(b, 8)
	b = binary.NativeEndian.AppendUint16(b, 2)
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(text)+1))
	b = binary.NativeEndian.AppendUint16(b, unix.NLMSGERR_ATTR_MSG)
	b = append(append(b, text...), 0)
	b = append(b, make([]byte, align(len(b))-len(b))...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func TestAnswersAreRead(t *testing.T) {
	header := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint32(header, 60)
	request := append(slices.Clone(header), make([]byte, 44)...)
	stray := refused(3, unix.EPERM)
	binary.NativeEndian.PutUint16(stray[4:], unix.RTM_NEWLINK)
	datagram := slices.Concat(
		refused(1, 0),
		explained(2, unix.EINVAL, unix.NLM_F_CAPPED, header, "Invalid gateway"),
		stray,
		explained(4, unix.ENODEV, 0, request, "No device"),
		refused(5, unix.EEXIST),
	)
	want := []struct {
		seq   uint32
		errno error
		text  string
	}{
		{1, nil, ""},
		{2, unix.EINVAL, "invalid argument (Invalid gateway)"},
		{4, unix.ENODEV, "no such device (No device)"},
		{5, unix.EEXIST, "file exists"},
	}
	got := slices.Collect(answers(datagram))
	if len(got) != len(want) {
		t.Fatalf("%d answers: %v", len(got), got)
	}
	for i, w := range want {
		text := ""
		if got[i].err != nil {
			text = got[i].err.Error()
		}
		if got[i].seq != w.seq || !errors.Is(got[i].err, w.errno) || text != w.text {
			t.Errorf("answer %d: %d %q, want %d %q", i, got[i].seq, text, w.seq, w.text)
		}
	}
}

// FuzzAnswers: arbitrary bytes end the reading, but never the process.
func FuzzAnswers(f *testing.F) {
	header := make([]byte, unix.SizeofNlMsghdr)
	whole := slices.Concat(refused(1, 0), explained(2, unix.EINVAL, unix.NLM_F_CAPPED, header, "Invalid gateway"))
	for n := range whole {
		f.Add(whole[:n])
	}
	binary.NativeEndian.PutUint32(header, 1<<32-1)
	f.Add(explained(3, unix.EINVAL, 0, header, "a request longer than the answer"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		for range answers(b) {
			n++
		}
		if n > len(b)/(unix.SizeofNlMsghdr+sizeofErrno) {
			t.Errorf("%d answers in %d bytes", n, len(b))
		}
	})
}
