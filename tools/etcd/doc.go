// Package etcd has no code. The tool lines of its go.mod pin the etcd
// and etcdctl that tests run, and its module keeps a server's dependencies out of the
// root module. "make etcd" builds both. Change the version with
//
//	go -C tools/etcd get -tool go.etcd.io/etcd/server/v3@VERSION go.etcd.io/etcd/etcdctl/v3@VERSION
//
// and that of go.etcd.io/etcd/client/v3 in the root module with it.
package etcd
