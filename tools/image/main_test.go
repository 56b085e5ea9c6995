package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Packages as small as they can be, with what a real one has that matters here.
var packages = map[string]map[string]string{
	"busybox-static": {"usr/bin/busybox": "#!", "usr/share/man/man1/busybox.1.gz": "manual"},
	"ca-certificates": {
		"usr/share/ca-certificates/mozilla/B.crt": "BBB\n", "usr/share/ca-certificates/mozilla/A.crt": "AAA\n",
		"usr/sbin/update-ca-certificates": "#!",
	},
	"libc6": {
		"lib/ld.so": "not ELF", "usr/lib/x86_64-linux-gnu/gconv/UTF-7.so": "other character sets",
		"usr/share/doc/libc6/copyright": "LGPL", "usr/share/doc/libc6/changelog.gz": "history",
	},
}

// newInput makes the input of an image, as make image has it.
func newInput(t *testing.T, archs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, arch := range archs {
		for name, files := range packages {
			pack(t, filepath.Join(dir, arch, "debian"), name, files)
		}
		programs := filepath.Join(dir, arch, "programs")
		for _, p := range []string{"twilld", "twill", "install-conf", "flannel-cni", "bridge", "host-local", "loopback", "portmap"} {
			put(t, filepath.Join(programs, p), p+" for "+arch)
		}
	}
	return dir
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func pack(t *testing.T, dir, name string, files map[string]string) {
	t.Helper()
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(root, "DEBIAN/control"), fmt.Sprintf(
		"Package: %s\nVersion: 1.0-1\nArchitecture: amd64\nMaintainer: nobody <nobody@example.com>\nDescription: test\n", name))
	for file, text := range files {
		put(t, filepath.Join(root, file), text)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", root, filepath.Join(dir, name+"_1.0-1_amd64.deb")).CombinedOutput()
	if err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
}

func optionsFor(dir string) options {
	licence := filepath.Join(dir, "LICENSE")
	_ = os.WriteFile(licence, []byte("Apache"), 0o644)
	return options{dir: dir, name: "registry.example.com:5000/twill:1.0", licence: licence, version: "1.0", at: time.Unix(1700000000, 0).UTC()}
}

// layers returns the layers of an image in an archive, after checking that all
// digests and sizes are those of what they name.
func layers(t *testing.T, archive tree, manifest v1.Descriptor) (v1.ConfigFile, []map[string]*tar.Header) {
	t.Helper()
	var m v1.Manifest
	decode(t, blob(t, archive, manifest), &m)
	var config v1.ConfigFile
	decode(t, blob(t, archive, m.Config), &config)
	var all []map[string]*tar.Header
	for i, d := range m.Layers {
		z, err := gzip.NewReader(bytes.NewReader(blob(t, archive, d)))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != config.RootFS.DiffIDs[i].Hex {
			t.Errorf("layer %d is not what the configuration says", i)
		}
		files := map[string]*tar.Header{}
		var names []string
		for r := tar.NewReader(bytes.NewReader(text)); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, strings.TrimSuffix(h.Name, "/"))
			files[strings.TrimSuffix(h.Name, "/")] = h
			if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 1700000000 {
				t.Errorf("%s belongs to %d:%d and is of %s", h.Name, h.Uid, h.Gid, h.ModTime)
			}
		}
		if !slices.IsSorted(names) {
			t.Errorf("layer %d is not sorted: %q", i, names)
		}
		all = append(all, files)
	}
	return config, all
}

func blob(t *testing.T, archive tree, d v1.Descriptor) []byte {
	t.Helper()
	data := archive[blobPath(d.Digest)].data
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != d.Digest.Hex || int64(len(data)) != d.Size {
		t.Fatalf("%s is not in the archive, or is something else", d.Digest)
	}
	return data
}

func decode(t *testing.T, text []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

func TestArchiveOfOneArchitecture(t *testing.T) {
	o := optionsFor(newInput(t, "amd64"))
	if err := run(o, []string{"amd64"}); err != nil {
		t.Fatal(err)
	}
	archive, err := readArchive(filepath.Join(o.dir, "twill-amd64.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(archive["oci-layout"].data); text != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: %s", text)
	}
	var index v1.IndexManifest
	decode(t, archive["index.json"].data, &index)
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != o.name ||
		index.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "1.0" {
		t.Errorf("the index is %s", archive["index.json"].data)
	}
	config, files := layers(t, archive, index.Manifests[0])
	if config.Architecture != "amd64" || config.OS != "linux" || !config.Created.Equal(o.at) {
		t.Errorf("the image is for %s/%s, of %s", config.OS, config.Architecture, config.Created)
	}
	if e := config.Config.Entrypoint; !slices.Equal(e, []string{"/opt/bin/flanneld"}) {
		t.Errorf("it starts %q", e)
	}
	// The paths that deployers of flannel call.
	for _, path := range []string{"opt/bin/flanneld", "opt/bin/install-conf", "opt/bin/mk-docker-opts.sh", "flannel",
		"usr/lib/cni/bridge", "usr/lib/cni/host-local", "usr/lib/cni/loopback", "usr/lib/cni/portmap", "usr/local/bin/twill"} {
		if h := files[1][path]; h == nil || h.Mode != 0o755 || h.Size == 0 {
			t.Errorf("%s: %+v, want a program", path, h)
		}
	}
	for path, target := range map[string]string{"usr/bin/cp": "busybox", "usr/bin/sh": "busybox", "bin": "usr/bin", "lib": "usr/lib"} {
		if h := files[0][path]; h == nil || h.Linkname != target {
			t.Errorf("%s: %+v, want a link to %s", path, h, target)
		}
	}
	for _, path := range []string{"usr/lib/ld.so", "usr/share/doc/libc6/copyright", "var/lib/dpkg/status.d/libc6"} {
		if files[0][path] == nil {
			t.Errorf("%s is missing", path)
		}
	}
	for path := range files[0] {
		if strings.Contains(path, "/man") || strings.Contains(path, "gconv") || strings.Contains(path, "changelog") || strings.Contains(path, "update-") {
			t.Errorf("%s is of no use", path)
		}
	}

	// What docker load reads.
	var list []dockerEntry
	decode(t, archive["manifest.json"].data, &list)
	if len(list) != 1 || !slices.Equal(list[0].RepoTags, []string{o.name}) || len(list[0].Layers) != 2 {
		t.Fatalf("manifest.json is %s", archive["manifest.json"].data)
	}
	for _, path := range append(list[0].Layers, list[0].Config) {
		if _, ok := archive[path]; !ok {
			t.Errorf("manifest.json names %s, which is not there", path)
		}
	}
}

func TestArchiveOfAllArchitectures(t *testing.T) {
	archs := []string{"amd64", "arm64", "arm", "riscv64"}
	o := optionsFor(newInput(t, archs...))
	if err := run(o, archs); err != nil {
		t.Fatal(err)
	}
	archive, err := readArchive(filepath.Join(o.dir, "twill.tar"))
	if err != nil {
		t.Fatal(err)
	}
	var top, index v1.IndexManifest
	decode(t, archive["index.json"].data, &top)
	decode(t, blob(t, archive, top.Manifests[0]), &index)
	var got []string
	for _, d := range index.Manifests {
		got = append(got, d.Platform.String())
		config, files := layers(t, archive, d)
		if config.Architecture != d.Platform.Architecture {
			t.Errorf("%s has an image for %s", d.Platform, config.Architecture)
		}
		if want := int64(len("twilld for " + d.Platform.Architecture)); files[1]["opt/bin/flanneld"].Size != want {
			t.Errorf("%s has another architecture's programs", d.Platform)
		}
	}
	if want := []string{"linux/amd64", "linux/arm64/v8", "linux/arm/v7", "linux/riscv64"}; !slices.Equal(got, want) {
		t.Errorf("there are images for %q, want %q", got, want)
	}
}

func TestSameInputMakesTheSameBytes(t *testing.T) {
	var made [2][]byte
	for i := range made {
		o := optionsFor(newInput(t, "amd64", "arm"))
		// Another user's umask, and other times.
		err := filepath.WalkDir(o.dir, func(path string, e os.DirEntry, err error) error {
			if i == 1 && err == nil && !e.IsDir() {
				err = os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0))
			}
			if i == 1 && err == nil && strings.Contains(path, "programs/") {
				err = os.Chmod(path, 0o700)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := run(o, []string{"amd64", "arm"}); err != nil {
			t.Fatal(err)
		}
		if made[i], err = os.ReadFile(filepath.Join(o.dir, "twill.tar")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("two runs made different archives")
	}
}

func TestCertificatesAreOneFileInOrder(t *testing.T) {
	base, err := debian(filepath.Join(newInput(t, "amd64"), "amd64", "debian"))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(base[certificates].data); text != "AAA\nBBB\n" {
		t.Errorf("got %q", text)
	}
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	dir := newInput(t, "amd64")
	o := optionsFor(dir)
	for _, tt := range []struct {
		name string
		o    options
		arch string
		want string
	}{
		{"no packages", o, "arm64", "arm64/debian has no packages: run scripts/fetch-image.sh"},
		{"no such architecture", o, "mips", `"mips"`},
		{"no tag", options{dir: dir, name: "registry.example.com:5000/twill"}, "amd64", "has no tag"},
	} {
		if err := run(tt.o, []string{tt.arch}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", tt.name, err, tt.want)
		}
	}

	// The test's own program is for this machine, and may need libraries.
	self, err := os.ReadFile("/bin/ls")
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "amd64", "programs", "twill"), string(self))
	if err := run(o, []string{"amd64"}); err == nil || !strings.Contains(err.Error(), "usr/local/bin/twill: ") {
		t.Errorf("a program whose libraries are in no package: %v", err)
	}
}
