/* Which Host names are served: a page whose name an attacker has pointed at this machine (DNS rebinding) runs in the
 * user's browser as this server's own origin, and only the Host header tells. Thread: any. */
#ifndef QR_SERVER_HOSTS_H
#define QR_SERVER_HOSTS_H

#include "base/str.h"
#include "server/server.h"

/* Every host unless options list some, or the server listens on this machine only and asks for no key: then localhost,
 * *.localhost, what containers call this machine, the name it listens on, what the options list ("*": all; ".name": what
 * ends in it), and IP addresses, which nobody can point elsewhere. */
bool qr_host_allowed(const qr_server_options *options, qr_str host);

#endif
