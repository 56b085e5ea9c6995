package diag

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// packed returns an archive with these files as twill diag makes it.
func packed(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var parts []Part
	for _, name := range slices.Sorted(maps.Keys(files)) {
		parts = append(parts, Part{Name: name, Read: func(context.Context) ([]byte, error) { return []byte(files[name]), nil }})
	}
	var b bytes.Buffer
	testkit.Must(t, Pack(t.Context(), &b, "twill-diag-node", parts, io.Discard))
	return b.Bytes()
}

// names lists the files of an archive.
func names(t *testing.T, archive []byte) (all []string) {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(archive))
	testkit.Must(t, err)
	defer z.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		testkit.Must(t, err)
		all = append(all, h.Name)
	}
}

func TestBundleHasADirectoryForEachNode(t *testing.T) {
	var out bytes.Buffer
	b, err := NewBundle(&out, "all")
	testkit.Must(t, err)
	for node, page := range map[string]string{
		"192.0.2.1": "ok    daemon  runs\n", "192.0.2.2": "bad   tun   none\n            → modprobe tun\nwarn  clock  off\n            → timedatectl\nbad  lease  gone\n",
	} {
		taken, err := b.Add(node, bytes.NewReader(packed(t, map[string]string{"doctor.txt": page, "kernel/links.txt": "eth0"})))
		testkit.Must(t, err)
		want := ""
		if node == "192.0.2.2" {
			want = "bad   tun   none|            → modprobe tun|bad  lease  gone"
		}
		if got := strings.Join(taken.Bad, "|"); got != want || taken.Files != 2 || taken.Bytes != len(page)+4 {
			t.Errorf("%s: took %+v, want the bad findings %q", node, taken, want)
		}
	}
	testkit.Must(t, b.Note("192.0.2.3", errors.New("connection refused")), b.Close())
	got := names(t, out.Bytes())
	slices.Sort(got)
	want := "all/192.0.2.1/doctor.txt all/192.0.2.1/kernel/links.txt all/192.0.2.2/doctor.txt all/192.0.2.2/kernel/links.txt all/192.0.2.3.error"
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestBundleTakesNothingButFilesBelowTheNode: what another node sends is not trusted.
func TestBundleTakesNothingButFilesBelowTheNode(t *testing.T) {
	for name, h := range map[string]*tar.Header{
		"a path upwards":   {Name: "dir/../../etc/passwd", Typeflag: tar.TypeReg},
		"an absolute path": {Name: "dir//etc/passwd", Typeflag: tar.TypeReg},
		"a link":           {Name: "dir/link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		"a directory":      {Name: "dir/sub", Typeflag: tar.TypeDir},
		"a large file":     {Name: "dir/large", Typeflag: tar.TypeReg, Size: maxPart + 1},
	} {
		var evil bytes.Buffer
		z, err := zstd.NewWriter(&evil)
		testkit.Must(t, err)
		w := tar.NewWriter(z)
		testkit.Must(t, w.WriteHeader(h))
		_, err = w.Write(make([]byte, h.Size))
		testkit.Must(t, err, w.Close(), z.Close())
		var out bytes.Buffer
		b, err := NewBundle(&out, "all")
		testkit.Must(t, err)
		if _, err := b.Add("192.0.2.1", &evil); err == nil || !strings.Contains(err.Error(), "does not belong in it") {
			t.Errorf("%s: %v", name, err)
		}
		testkit.Must(t, b.Close())
		if got := names(t, out.Bytes()); len(got) > 0 {
			t.Errorf("%s: %q was taken", name, got)
		}
	}
}

func TestBundleOfWhatIsNoArchiveIsAnError(t *testing.T) {
	whole := packed(t, map[string]string{"a": strings.Repeat("a", 1<<17), "b": "b"})
	for name, content := range map[string][]byte{"nothing": nil, "a login's text": []byte("Welcome to node 2!\n"), "a part": whole[:len(whole)-9]} {
		b, err := NewBundle(io.Discard, "all")
		testkit.Must(t, err)
		if _, err := b.Add("192.0.2.1", bytes.NewReader(content)); err == nil {
			t.Errorf("%s was taken for an archive", name)
		}
	}
}
