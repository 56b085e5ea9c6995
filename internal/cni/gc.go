package cni

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// gc ends the attachments to this network that the runtime no longer names: the
// delegate's DEL for each, then the removal of what is saved. The delegate gets the
// command too, with the same list.
func (p *plugin) gc(args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	errs := []error{p.collect(conf, args.Path)}
	d, err := conf.present()
	if err == nil {
		d["cni.dev/valid-attachments"] = encode(conf.ValidAttachments)
		err = p.run(d, call("GC", args))
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		return coded(types.ErrTryAgainLater, err)
	}
	return nil
}

// collect goes on after an error, which it returns in the end.
func (p *plugin) collect(conf *netConf, path string) error {
	dir := stateDir(conf.DataDir)
	files, err := dir.files()
	errs := []error{err}
	for _, file := range files {
		s, err := dir.read(file)
		if err != nil {
			// Whose it is nobody can say; a DEL of that container deals with it.
			if !errors.Is(err, os.ErrNotExist) {
				fmt.Fprintf(p.stderr, "flannel: left alone: %v\n", err)
			}
			continue
		}
		if s.network != conf.Name || conf.valid(attachmentOf(file), s.byStock) {
			continue
		}
		errs = append(errs, p.end(dir, file, s, path))
	}
	return errors.Join(errs...)
}

// valid reports whether the runtime still has the attachment. Of stock's files only
// the container is known.
func (n *netConf) valid(a attachment, byStock bool) bool {
	return slices.ContainsFunc(n.ValidAttachments, func(v types.GCAttachment) bool {
		return v.ContainerID == a.container && (byStock || v.IfName == a.ifName)
	})
}

// end is DEL of an attachment whose container is gone, and its network namespace
// with it.
func (p *plugin) end(dir stateDir, file string, s saved, path string) error {
	a := attachmentOf(file)
	err := p.run(s.delegate, &invoke.Args{Command: "DEL", ContainerID: a.container, IfName: a.ifName, Path: path})
	if err != nil {
		return fmt.Errorf("container %s, interface %s: %w", a.container, a.ifName, err)
	}
	return dir.remove(file)
}
