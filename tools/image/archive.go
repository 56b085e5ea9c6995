package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// imageOf makes an image of layers, the lowest first. All its times are at.
func imageOf(p *v1.Platform, at time.Time, config v1.Config, layers ...tree) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, t := range layers {
		text, err := t.tar(at)
		if err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(
			func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil },
			tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestCompression),
			tarball.WithCompressedCaching)
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{
			Created: v1.Time{Time: at}, CreatedBy: "tools/image",
		}})
		if err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Created = v1.Time{Time: at}
	file.OS, file.Architecture, file.Variant = p.OS, p.Architecture, p.Variant
	file.Config = config
	return mutate.ConfigFile(img, file)
}

// archive is an OCI image layout under construction, as one file.
type archive struct {
	blobs map[string][]byte // by path
	index v1.IndexManifest
	// docker is the manifest for versions of docker load that do not know the OCI
	// layout.
	docker []dockerEntry
}

// dockerEntry is an element of manifest.json in docker save's format.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func newArchive() *archive {
	return &archive{
		blobs: map[string][]byte{},
		index: v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}},
	}
}

func blobPath(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// image adds the blobs of an image and returns its descriptor.
func (a *archive) image(img v1.Image, p *v1.Platform) (v1.Descriptor, dockerEntry, error) {
	var d dockerEntry
	m, err := img.Manifest()
	if err != nil {
		return v1.Descriptor{}, d, err
	}
	layers, err := img.Layers()
	if err != nil {
		return v1.Descriptor{}, d, err
	}
	for i, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			return v1.Descriptor{}, d, err
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(r); err != nil {
			return v1.Descriptor{}, d, err
		}
		path := blobPath(m.Layers[i].Digest)
		a.blobs[path] = b.Bytes()
		d.Layers = append(d.Layers, path)
	}
	d.Config = blobPath(m.Config.Digest)
	if a.blobs[d.Config], err = img.RawConfigFile(); err != nil {
		return v1.Descriptor{}, d, err
	}
	text, err := img.RawManifest()
	if err != nil {
		return v1.Descriptor{}, d, err
	}
	desc, err := a.blob(text, m.MediaType)
	desc.Platform = p
	return desc, d, err
}

// blob adds a document and returns its descriptor.
func (a *archive) blob(text []byte, kind types.MediaType) (v1.Descriptor, error) {
	h, size, err := v1.SHA256(bytes.NewReader(text))
	a.blobs[blobPath(h)] = text
	return v1.Descriptor{MediaType: kind, Digest: h, Size: size}, err
}

// write writes the archive to a file, which it replaces at once. The same images give the
// same bytes.
func (a *archive) write(path string, at time.Time) error {
	t := tree{}
	for name, b := range a.blobs {
		t.file(name, 0o644, b)
	}
	documents := map[string]any{
		"oci-layout": map[string]string{"imageLayoutVersion": "1.0.0"},
		"index.json": a.index,
	}
	if len(a.docker) > 0 {
		documents["manifest.json"] = a.docker
	}
	for name, v := range documents {
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		t.file(name, 0o644, text)
	}
	text, err := t.tar(at)
	if err != nil {
		return err
	}
	// Another process may read the archive that is there.
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// readArchive returns the files of an archive.
func readArchive(path string) (tree, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t := tree{}
	return t, t.read(tar.NewReader(f), func(string) bool { return true })
}
