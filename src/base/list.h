/* Intrusive doubly linked list: a node inside the item, a circular sentinel as head; every operation is
 * O(1). An unlinked node points to itself. Thread: none shared. */
#ifndef QR_BASE_LIST_H
#define QR_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

typedef struct qr_list {
    struct qr_list *prev, *next;
} qr_list;

static inline void qr_list_init(qr_list *node) { node->prev = node->next = node; }
static inline bool qr_list_empty(const qr_list *head) { return head->next == head; }
static inline void qr_list_insert_before(qr_list *at, qr_list *node)
{
    node->prev = at->prev;
    node->next = at;
    at->prev->next = node;
    at->prev = node;
}
static inline void qr_list_push_back(qr_list *head, qr_list *node) { qr_list_insert_before(head, node); }
static inline void qr_list_push_front(qr_list *head, qr_list *node)
{
    qr_list_insert_before(head->next, node);
}
static inline void qr_list_remove(qr_list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    node->prev = node->next = node;
}
#define QR_LIST_ITEM(node, type, member) ((type *)(void *)((char *)(node)-offsetof(type, member)))

#endif
