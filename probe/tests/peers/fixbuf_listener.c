/*
 * A collector of libfixbuf's, for one session: fixbuf_listener tcp PORT, or fixbuf_listener stdin
 *
 * Debian builds libfixbuf without TLS: what came over TLS it gets from OpenSSL's s_server, through its standard input.
 * Over TCP it prints "listening" first. Then it prints one line for each flow, as "source destination protocol packets reversePackets", one for each
 * options record ("options ID"), and at the end of the session "end", or what libfixbuf complains of.
 */
#include <arpa/inet.h>
#include <fixbuf/public.h>
#include <stdio.h>
#include <string.h>

typedef struct flow_st {
    uint32_t source;
    uint32_t destination;
    uint64_t packets;
    uint64_t reverse_packets;
    uint8_t source6[16];
    uint8_t destination6[16];
    uint8_t protocol;
    uint8_t padding[7];
} flow_t;

static fbInfoElementSpec_t flow_spec[] = {
    {"sourceIPv4Address", 4, 0},
    {"destinationIPv4Address", 4, 0},
    {"packetDeltaCount", 8, 0},
    {"reversePacketDeltaCount", 8, 0},
    {"sourceIPv6Address", 16, 0},
    {"destinationIPv6Address", 16, 0},
    {"protocolIdentifier", 1, 0},
    {"paddingOctets", 7, 0},
    FB_IESPEC_NULL,
};

static void print_flow(const flow_t *flow)
{
    char source[INET6_ADDRSTRLEN], destination[INET6_ADDRSTRLEN];
    uint32_t from = htonl(flow->source), to = htonl(flow->destination);
    int is_v4 = from != 0 || to != 0;
    inet_ntop(is_v4 ? AF_INET : AF_INET6, is_v4 ? (void *)&from : (void *)flow->source6, source, sizeof source);
    inet_ntop(is_v4 ? AF_INET : AF_INET6, is_v4 ? (void *)&to : (void *)flow->destination6, destination,
              sizeof destination);
    printf("%s %s %u %llu %llu\n", source, destination, flow->protocol, (unsigned long long)flow->packets,
           (unsigned long long)flow->reverse_packets);
}

/* Reads records until the session ends; the error says how. */
static void read_session(fBuf_t *buffer, uint16_t internal, GError **error)
{
    for (;;) {
        uint16_t id = 0;
        flow_t flow;
        size_t length = sizeof flow;
        fbTemplate_t *external = fBufNextCollectionTemplate(buffer, &id, error);
        if (external == NULL || !fBufSetInternalTemplate(buffer, internal, error)) {
            return;
        }
        memset(&flow, 0, sizeof flow);
        if (!fBufNext(buffer, (uint8_t *)&flow, &length, error)) {
            return;
        }
        if (fbTemplateGetOptionsScope(external) > 0) {
            printf("options %u\n", id);
        } else {
            print_flow(&flow);
        }
    }
}

static int fail(const char *what, const GError *error)
{
    printf("%s: %s\n", what, error == NULL ? "" : error->message);
    return 1;
}

/* Listens at a port of loopback for the one connection; its records, or NULL. */
static fBuf_t *listen_at(char *port, fbSession_t *session, GError **error)
{
    fbConnSpec_t where = FB_CONNSPEC_INIT;
    where.transport = FB_TCP;
    where.host = "127.0.0.1";
    where.svc = port;
    fbListener_t *listener = fbListenerAlloc(&where, session, NULL, NULL, error);
    if (listener == NULL) {
        return NULL;
    }
    puts("listening");
    fflush(stdout);
    return fbListenerWait(listener, error);
}

int main(int count, char **arguments)
{
    GError *error = NULL;
    fbInfoModel_t *model = fbInfoModelAlloc();
    fbSession_t *session = fbSessionAlloc(model);
    fbTemplate_t *template = fbTemplateAlloc(model);
    if (count < 2 || !fbTemplateAppendSpecArray(template, flow_spec, ~0u, &error)) {
        return fail("template", error);
    }
    uint16_t internal = fbSessionAddTemplate(session, TRUE, FB_TID_AUTO, template, &error);
    if (internal == 0) {
        return fail("template", error);
    }
    gboolean listens = strcmp(arguments[1], "tcp") == 0 && count == 3;
    fBuf_t *buffer = listens ? listen_at(arguments[2], session, &error)
                             : fBufAllocForCollection(session, fbCollectorAllocFP(NULL, stdin));
    if (buffer == NULL) {
        return fail("session", error);
    }
    fBufSetAutomaticMode(buffer, TRUE);
    read_session(buffer, internal, &error);
    if (!g_error_matches(error, FB_ERROR_DOMAIN, FB_ERROR_EOF)) {
        return fail("broken", error);
    }
    puts("end");
    return 0;
}
