// Package etcdtls makes the certificates with which the nodes of a cluster and
// the etcd inside the first node's daemon authenticate each other.
//
// The first node keeps an [Authority]. It signs the certificate of the server,
// and one for each node that is invited. An [Invitation] carries a node's key and
// certificate, the authority's certificate and the address of the etcd; the
// commands "twill invite" and "twill join" carry it from one node to the other.
//
// Certificates do not expire (RFC 5280 §4.1.2.5 defines a date for that), since
// boards without a clock start in 1970 and nothing would renew them. To lock a
// node out, make a new authority: remove the directory and invite the others
// again.
package etcdtls
