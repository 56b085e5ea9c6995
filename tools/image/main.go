// Command image builds twill's container image without a container engine, from
// Debian packages, which are unpacked but not installed, and the programs of this
// repository. The same input gives the same bytes, wherever and whenever it runs.
//
//	DIR/amd64/debian/*.deb ─► layer ┐
//	                                ├─► image amd64 ─► DIR/twill-amd64.tar
//	DIR/amd64/programs/*   ─► layer ┘                ┐
//	                          … arm64, arm, riscv64 ─┴─► DIR/twill.tar
//
// The archives are OCI image layouts, for "ctr images import" and other tools that
// read them. Those of one architecture also have docker save's manifest, for any
// version of "docker load".
package main

import (
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

//go:embed files/iptables
var chooseKind []byte

//go:embed files/mk-docker-opts.sh
var dockerOpts []byte

func main() {
	var o options
	var epoch int64
	flag.StringVar(&o.dir, "dir", "bin/image", "`directory` of what the image is made of, and of the archives")
	flag.StringVar(&o.name, "name", "localhost/twill:dev", "`name` of the image, with a tag")
	flag.StringVar(&o.licence, "licence", "LICENSE", "`file` with the licence of the programs")
	flag.StringVar(&o.version, "version", "", "`version` of the programs, for a label")
	flag.Int64Var(&epoch, "epoch", 0, "time of all files in `seconds` since 1970 (SOURCE_DATE_EPOCH)")
	flag.Parse()
	o.at = time.Unix(epoch, 0).UTC()
	if err := run(o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// options configure the build.
type options struct {
	dir, name, licence, version string
	at                          time.Time
}

// run writes an archive for each architecture, and one with all of them.
func run(o options, archs []string) error {
	if len(archs) == 0 {
		return fmt.Errorf("for which architectures? amd64, arm64, arm or riscv64")
	}
	if tag := o.tag(); tag == "" || strings.Contains(tag, "/") {
		return fmt.Errorf("the name %q has no tag: write %s:dev", o.name, o.name)
	}
	all := newArchive()
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, arch := range archs {
		d, err := o.one(arch, all)
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		index.Manifests = append(index.Manifests, d)
	}
	text, err := json.Marshal(index)
	if err != nil {
		return err
	}
	d, err := all.blob(text, types.OCIImageIndex)
	if err != nil {
		return err
	}
	all.index.Manifests = append(all.index.Manifests, o.named(d))
	return o.finish("all", filepath.Join(o.dir, "twill.tar"), d, all)
}

// one builds the image of an architecture, writes its archive, and adds it to the
// archive with all of them.
func (o options) one(arch string, all *archive) (v1.Descriptor, error) {
	p, machine, err := platformOf(arch)
	if err != nil {
		return v1.Descriptor{}, err
	}
	base, err := debian(filepath.Join(o.dir, arch, "debian"))
	if err != nil {
		return v1.Descriptor{}, err
	}
	programs, err := own(filepath.Join(o.dir, arch, "programs"), o.licence)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if err := linked(machine, base, programs); err != nil {
		return v1.Descriptor{}, err
	}
	img, err := imageOf(p, o.at, o.config(), base, programs)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if _, _, err := all.image(img, p); err != nil {
		return v1.Descriptor{}, err
	}
	a := newArchive()
	d, entry, err := a.image(img, p)
	if err != nil {
		return v1.Descriptor{}, err
	}
	entry.RepoTags = []string{o.name}
	a.docker = []dockerEntry{entry}
	a.index.Manifests = append(a.index.Manifests, o.named(d))
	return d, o.finish(arch, filepath.Join(o.dir, "twill-"+arch+".tar"), d, a)
}

// finish writes an archive and prints a description of it.
func (o options) finish(what, path string, d v1.Descriptor, a *archive) error {
	if err := a.write(path, o.at); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	fmt.Printf("%-8s %5.1f MB  %s  %s\n", what, float64(info.Size())/1e6, d.Digest, path)
	return nil
}

func (o options) tag() string { return o.name[strings.LastIndex(o.name, ":")+1:] }

// named adds an image's name to its descriptor, for containerd and for others.
func (o options) named(d v1.Descriptor) v1.Descriptor {
	d.Annotations = map[string]string{
		"io.containerd.image.name":          o.name,
		"org.opencontainers.image.ref.name": o.tag(),
	}
	return d
}

// config is the default configuration of a container, the same as in flannel's image.
func (o options) config() v1.Config {
	labels := map[string]string{
		"org.opencontainers.image.title":       "twill",
		"org.opencontainers.image.description": "pod network of a Kubernetes node, in flannel's place",
		"org.opencontainers.image.licenses":    "Apache-2.0",
	}
	if o.version != "" {
		labels["org.opencontainers.image.version"] = o.version
	}
	return v1.Config{
		Entrypoint: []string{"/opt/bin/flanneld"},
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Labels:     labels,
	}
}
